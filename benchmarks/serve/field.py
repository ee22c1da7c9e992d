"""The contestants: each is started when a case first needs it, and all end together."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serve.engine import EngineContestant
from benchmarks.serve.peer_process import PeerProcess
from benchmarks.serve.replica import ReplicaContestant
from benchmarks.serve.workload import Workload

MAX_REQUESTS = 64


class Field:
    """`llama_cpp` and `openvino`: an interpreter that has the package, and the GGUF file that the model came from."""

    def __init__(
        self,
        model: Path,
        vllm_python: Path | None,
        llama_cpp: tuple[Path, Path] | None,
        openvino: tuple[Path, Path] | None,
        num_many: int,
        directory: Path,
    ) -> None:
        self._model, self._vllm_python, self._num_many, self._directory = model, vllm_python, num_many, directory
        self._llama_cpp_files, self._openvino_files = llama_cpp, openvino
        self._engine: EngineContestant | None = None
        self._vllm: PeerProcess | None = None
        self._llama_cpp: PeerProcess | None = None
        self._openvino: PeerProcess | None = None
        self._transformers: PeerProcess | None = None
        self._replica: ReplicaContestant | None = None
        self._many: Workload | None = None
        self._seed = 1000
        self.prefix_load_seconds = 0.0
        self.workload: Workload

    async def engine(self) -> EngineContestant:
        """The warmed-up engine with the eight prompts few-0 to few-7."""
        if self._engine is None:
            self._engine = EngineContestant()
            await self._engine.start(self._model)
            self.workload = Workload.make(self._engine.table, MAX_REQUESTS)
            self.prefix_load_seconds = await self._engine.load(self.workload, "few-")
            await self._engine.tokens_per_second(self.workload, "few-", 4)
        return self._engine

    async def peers(self) -> dict[str, PeerProcess]:
        """Those that were given and decode greedily."""
        found = {"vllm": await self.vllm(), "llama.cpp": await self.llama_cpp(), "OpenVINO": await self.openvino()}
        return {name: peer for name, peer in found.items() if peer is not None}

    def about_peers(self) -> dict[str, str]:
        """What those that run say of themselves, to be kept with the figures."""
        peers = {"vllm": self._vllm, "llama.cpp": self._llama_cpp, "OpenVINO": self._openvino}
        return {name: peer.about for name, peer in peers.items() if peer is not None}

    async def llama_cpp(self) -> PeerProcess | None:
        if self._llama_cpp is None:
            self._llama_cpp = await self._peer("llama.cpp", self._llama_cpp_files)
        return self._llama_cpp

    async def openvino(self) -> PeerProcess | None:
        if self._openvino is None:
            self._openvino = await self._peer("OpenVINO", self._openvino_files)
        return self._openvino

    async def vllm(self) -> PeerProcess | None:
        if self._vllm is None and self._vllm_python is not None:
            self._vllm = await self._peer("vLLM", (self._vllm_python, self._model))
        return self._vllm

    async def _peer(self, name: str, files: tuple[Path, Path] | None) -> PeerProcess | None:
        """`files`: the peer's interpreter and its model; None: it is left out."""
        if files is None:
            return None
        table = (await self.engine()).table
        return PeerProcess.of_script(name, *files, self.workload, table, self._directory)

    async def transformers(self) -> PeerProcess:
        if self._transformers is None:
            table = (await self.engine()).table
            self._transformers = PeerProcess.transformers(self._model, self.workload, table, self._directory)
        return self._transformers

    async def replica(self) -> ReplicaContestant:
        if self._replica is None:
            await self.engine()
            self._replica = ReplicaContestant(self._model, self._directory)
            await self._replica.start(self.workload)
        return self._replica

    async def many(self) -> Workload:
        """Loads hundreds of prompts, named many-0 and so on."""
        if self._many is None:
            engine = await self.engine()
            self._many = Workload.make(engine.table, MAX_REQUESTS, self._num_many, seed=1)
            await engine.load(self._many, "many-")
        return self._many

    def next_seed(self) -> int:
        self._seed += 1
        return self._seed

    async def close(self) -> None:
        if self._replica is not None:
            await self._replica.stop()
        for peer in (self._vllm, self._llama_cpp, self._openvino, self._transformers):
            if peer is not None:
                peer.close()
        if self._engine is not None:
            await self._engine.stop()
