"""Baseline (b): Transformers and PEFT on PyTorch, used in the usual way.

Sub-batches of consecutive sequences, each padded to its own longest with an attention mask; logits
of all positions, log-softmax in float32, `topk`; `loss.backward()`. In bfloat16 everything is
bfloat16, the adapter too, and only the log-softmax is float32.
"""

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.protocol import SAMPLE, SCORE, TRAIN, Task, padded, serve


class TorchWorker:
    """One model, and the task at hand."""

    def load(self, directory: str, dtype: str, threads: int) -> None:
        """Load a Hugging Face directory."""
        torch.set_num_threads(threads)
        self._dtype = getattr(torch, dtype)
        self._directory = directory
        self._base = self._load_base()

    def _load_base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._directory, dtype=self._dtype).eval()

    def prepare(self, task: Task) -> None:
        """Keep the task, attach the adapter, run the first sub-batch."""
        self._task = task
        self._model = self._base
        if task.kind == TRAIN:
            # A model of its own: PEFT changes the one that it is given.
            self._model = self._load_base().train()
            if task.options["is_lora"]:
                self._model = PeftModel.from_pretrained(
                    self._model,
                    task.options["adapter"],
                    is_trainable=True,
                    autocast_adapter_dtype=False,
                )
                for parameter in self._model.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.to(self._dtype)
        self._vocab_size = self._base.config.vocab_size
        if task.kind == SAMPLE:
            self._sample(new_tokens=4)
            return
        first = next(task.sub_batches(self._vocab_size))
        self._score(first) if task.kind == SCORE else self._train(first)

    def run(self) -> float:
        """The whole task."""
        task = self._task
        if task.kind == SAMPLE:
            return self._sample(task.options["new_tokens"])
        if task.kind == TRAIN:
            for parameter in self._model.parameters():
                parameter.grad = None
        step = self._score if task.kind == SCORE else self._train
        sums = [step(here) for here in task.sub_batches(self._vocab_size)]
        total, count = np.sum(sums, axis=0)
        return float(total / count)

    def _inputs(self, here: slice) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = self._task.sequences[here]
        token_ids = torch.from_numpy(padded(sequences).astype(np.int64))
        mask = torch.from_numpy(padded([np.ones(len(row), np.int64) for row in sequences]))
        return token_ids, mask

    def _score(self, here: slice) -> tuple[float, int]:
        token_ids, mask = self._inputs(here)
        with torch.no_grad():
            logits = self._model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        values, ids = torch.topk(log_probs, self._task.options["top_k"], dim=-1)
        own = torch.gather(log_probs[:, :-1], -1, token_ids[:, 1:, None])[..., 0].numpy()
        total, count = 0.0, 0
        for index, row in enumerate(range(here.start, here.stop)):
            # Position t has the distribution over token t + 1.
            first = self._task.options["score_from"][row] - 1
            wanted = slice(first, len(self._task.sequences[row]) - 1)
            kept = values[index, wanted].numpy(), ids[index, wanted].numpy(), own[index, wanted]
            total += float(kept[0].sum(dtype=np.float64))
            count += kept[0].size
        return total, count

    def _train(self, here: slice) -> tuple[float, int]:
        token_ids, mask = self._inputs(here)
        targets = {name: rows[here] for name, rows in self._task.targets.items()}
        ids = torch.from_numpy(padded(targets["ids"]).astype(np.int64))
        values = torch.from_numpy(padded(targets["values"]))
        logits = self._model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits
        log_probs = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids)
        if self._task.options["is_hard"]:
            losses = -(values * log_probs).sum(-1)
        else:
            tails = torch.from_numpy(padded(targets["tails"]))
            support = torch.logsumexp(log_probs, -1).clamp(max=-1e-7)
            tail_gap = tails - torch.log(-torch.expm1(support))
            losses = (values.exp() * (values - log_probs)).sum(-1) + tails.exp() * tail_gap
        loss = (losses * mask).sum()
        loss.backward()
        return loss.item(), int(mask.sum())

    def _sample(self, new_tokens: int) -> float:
        """All prompts at once; they are of one length."""
        token_ids = torch.from_numpy(np.stack(self._task.sequences).astype(np.int64))
        samples = self._model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=True,
            top_k=0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        return float(samples.shape[1] - token_ids.shape[1])


if __name__ == "__main__":
    serve(TorchWorker)
