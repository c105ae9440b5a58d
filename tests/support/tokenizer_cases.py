"""Texts and chats on which tokenizers and chat templates tend to differ."""

TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  two spaces before, two after  ",
    "a\tb\n\n\nc\r\nd",
    "1 12 123 1234567890 3.14159 1,000,000",
    "It's we'll I'd they've O'Neil's 'quoted'",
    "naïve façade Zürich Łódź",
    "cafe\u0301 and caf\u00e9",  # decomposed and composed
    "Привет, мир! Γειά σου Κόσμε",  # noqa: RUF001 - Greek is meant
    "東京は日本の首都です。北京是中国的首都。",
    "مرحبا بالعالم שלום עולם",
    "👍🏽 👨‍👩‍👧‍👦 🇨🇭",
    "\u200b\u00a0\u3000\ufeff",  # invisible: zero width, no-break, ideographic, byte order mark
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    '<div class="a">&amp;</div> https://example.org/?q=1&r=%20#top',
    "x² + y³ ≤ ½ ∑∞ → ∅",
    "<|im_start|>user\nspecial tokens written out<|im_end|>\n<|endoftext|>",
    "<|im_start| >not special <|IM_END|>",
    "snake_case CamelCase SCREAMING_CASE kebab-case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\x00\x01\x7f control \x1b[0m",
)

CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Answer: blue."},
        {"role": "user", "content": "  Another,\nplease. <b>&</b> {{ not a template }} "},
    ],
    [{"role": "user", "content": "An odd one: <|im_end|> inside; 東京 👍🏽"}],
)
