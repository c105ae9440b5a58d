"""A worker that counts tokens; `options["wanted"]` asks for something else."""

import os

from benchmarks.peers.protocol import Task, serve


class CountingWorker:
    """As `benchmarks.peers.protocol.Worker`."""

    def __init__(self) -> None:
        self.loads = 0

    def load(self, directory: str, dtype: str, threads: int) -> None:
        assert directory
        assert dtype == "float32"
        assert threads == 1
        self.loads += 1

    def prepare(self, task: Task) -> None:
        self.task = task
        match task.options.get("wanted"):
            case "error":
                raise NotImplementedError("no such thing")
            case "death":
                os._exit(7)
            case "noise":
                print("a library says hello")

    def run(self) -> float:
        if self.task.options.get("wanted") == "loads":
            return self.loads
        return sum(len(sequence) for sequence in self.task.sequences)


if __name__ == "__main__":
    serve(CountingWorker)
