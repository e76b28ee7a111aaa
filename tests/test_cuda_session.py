"""Sessions on simulated GPUs: the CUDA kernels run on the processor, the host cannot touch the devices' memory, and kernels run no
sooner than it waits for them. `python tests/golden.py --cases tests/golden --device cuda-sim` replays every recording there;
here all but those that LEFT_OUT names (pytest -rs prints them)."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import golden  # noqa: E402
import gpu_sessions  # noqa: E402
import simulator  # noqa: E402
from conftest import MODELS, text_ids, tiny  # noqa: E402

import dllm_fast  # noqa: E402
from dllm_fast import _core  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # tests/c/test_cuda_session.c runs under sanitizers
    pytest.mark.skipif(bool(simulator.MISSING), reason=f"no GPU simulator: {simulator.MISSING}"),
]

UNCACHED = "an uncached run as those of the base family, for longer"
LEFT_OUT = {
    ("dllm_cache", "D07_base_g56"): UNCACHED,
    ("dllm_cache", "L11_base_g56_b8"): UNCACHED,
    ("dyllm", "dream_baseline"): UNCACHED,
    ("dyllm", "llada_baseline"): UNCACHED,
    ("dyllm", "dream_tinf"): "every row is salient, as in llada_tinf",
}


def on_the_device(case):
    """The others are computed by the host, whatever the device."""
    return case.family not in ("manifest", "tables", "pieces") and not case.name.startswith("op_")


CASES = [c for c in golden.collect(HERE / "golden", device=simulator.STRICT) if on_the_device(c)]


def parameter(case):
    why = LEFT_OUT.get((case.family, case.name))
    marks = [pytest.mark.skip(reason=f"{case.name}: {why}")] if why else []
    return pytest.param(case, id=f"{case.family}/{case.name}", marks=marks)


@pytest.fixture(autouse=True)
def simulated():
    simulator.load()


@pytest.mark.parametrize("case", [parameter(c) for c in CASES])
def test_recorded_run(case):
    word, check = case.result()
    assert word == "ok" or (word == "info" and case.informational and check.done), "\n".join(check)


def test_what_is_left_out_is_there():
    assert LEFT_OUT.keys() <= {(c.family, c.name) for c in CASES}
    families = {"forward", "llada_generate", "dream_generate", "loglik", "loading", "dllm_cache", "sparse_dllm", "dyllm"}
    assert {c.family for c in CASES} >= families


@pytest.fixture
def pair():
    """The same model on a simulated GPU and on the processor."""
    return dllm_fast.load(MODELS / "llada_tiny", dtype="float32", device=simulator.STRICT), tiny("llada_tiny")


def test_a_model_says_where_it_is(pair):
    assert (pair[0].device, pair[0].backend, pair[0].nbytes) == ("cuda-sim:3", "cuda", pair[1].nbytes)


def test_a_stream_is_the_processors(pair, rng):
    prompt = text_ids(rng, 7)[None]
    runs = [list(dllm_fast.stream(m, prompt, gen_length=8, steps=8, block_length=4)) for m in pair]
    assert len(runs[0]) == len(runs[1]) == 8
    for gpu, cpu in zip(*runs, strict=True):
        np.testing.assert_array_equal(gpu.sequences, cpu.sequences)
        np.testing.assert_array_equal(gpu.tokens, cpu.tokens)
        np.testing.assert_allclose(gpu.confidence, cpu.confidence, atol=1e-5)


def test_two_threads_at_once(pair, rng):
    prompts, got = [text_ids(rng, n)[None] for n in (5, 9)], {}

    def run(i):
        got[i] = dllm_fast.generate(pair[0], prompts[i], gen_length=8, steps=4, block_length=8, cache="dyllm")

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(2):
        want = dllm_fast.generate(pair[1], prompts[i], gen_length=8, steps=4, block_length=8, cache="dyllm")
        np.testing.assert_array_equal(got[i], want)


def test_what_is_asked_of_the_device_is_counted(pair, rng):
    prompt, params = text_ids(rng, 5).astype(np.int32), {"answer_len": 4, "steps": 4, "block_len": 4}
    gpu, cpu = (_core.Session(m.core, params, [prompt]) for m in pair)
    seen = []
    for session in (gpu, cpu):
        seen.append([session.stats()])
        while session.step():
            seen[-1].append(session.stats())
    for s in seen[0][1:]:  # all steps are alike, but for one more wait where a session opens
        assert s["kernels"] == s["steps"] * seen[0][1]["kernels"] >= s["steps"] * 10 * pair[0].config["layers"]
        assert s["waits"] - seen[0][0]["waits"] == s["steps"] * (seen[0][1]["waits"] - seen[0][0]["waits"]) > 0
    assert seen[0][1]["launches"] == seen[0][1]["kernels"]
    assert seen[0][-1]["launches"] - seen[0][-2]["launches"] == 1  # what comes again is one graph
    assert seen[0][-1]["waited"] > 0 and seen[1][-1]["launches"] == seen[1][-1]["kernels"] == 0


def tensors_of(folder):
    """Of float32 files."""
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, about in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                first, last = about["data_offsets"]
                yield name, np.frombuffer(raw[start + first : start + last], np.float32).reshape(about["shape"])


def test_weights_with_gaps_are_copied_without(rng):
    folder = MODELS / "llada_tiny_2shard_f32"
    gaps = {k: np.concatenate([v, np.full_like(v, np.nan)], axis=-1)[..., : v.shape[-1]] for k, v in tensors_of(folder)}
    config = (folder / "config.json").read_text(encoding="utf-8")
    ids = text_ids(rng, 11)[None]
    gpu, cpu = (dllm_fast.Model.from_tensors(config, gaps, device=d) for d in (simulator.STRICT, "cpu"))
    np.testing.assert_allclose(gpu.forward(ids), cpu.forward(ids), atol=1e-4)
    np.testing.assert_allclose(gpu.forward(ids), tiny("llada_tiny_2shard_f32").forward(ids), atol=1e-4)


def test_no_memory_for_weights():
    with pytest.raises(
        MemoryError, match=r"cuda-sim:21 is out of memory for weights: .*: \d+ x \d+ in float32, \d+ bytes, after \d+"
    ):
        dllm_fast.load(MODELS / "llada_tiny_2shard_f32", device="cuda-sim:21")
    assert dllm_fast.load(MODELS / "llada_tiny", device="cuda-sim:21").nbytes < 1 << 19  # what was copied before is free again


def test_no_memory_for_a_session(rng):
    model = dllm_fast.load(MODELS / "llada_tiny", device="cuda-sim:21")
    prompt = text_ids(rng, 6)[None]
    with pytest.raises(MemoryError, match=r"session: out of memory for .*: \d+ x \d+ bytes, after \d+ bytes were taken"):
        dllm_fast.generate(model, prompt, gen_length=512, steps=1, block_length=512)
    spent = 0
    for _ in range(8):
        out = dllm_fast.generate(model, prompt, gen_length=8, steps=1, block_length=8, return_dict=True)
        spent += out.stats["scratch_bytes"]
    assert out.sequences.shape == (1, 14) and spent > 1 << 19  # a session gives back what it took


def test_int8_weights_stay_on_the_processor():
    with pytest.raises(ValueError, match="runs on the CPU, not on device 'cuda-sim'"):
        dllm_fast.load(MODELS / "llada_tiny", weights="int8", device="cuda-sim")
    with pytest.raises(dllm_fast.DeviceError, match="int8 weights run on the CPU, not on cuda-sim:3"):
        _core.Model.from_folder(str(MODELS / "llada_tiny"), weights="int8", device=simulator.STRICT)


def test_sessions_beside_each_other():
    assert gpu_sessions.main(["--device", simulator.STRICT, "--laps", "1"]) == 0


def test_there_are_so_many_devices():
    with pytest.raises(dllm_fast.DeviceError, match="the devices are cuda-sim:0 to cuda-sim:23"):
        dllm_fast.load(MODELS / "llada_tiny", device="cuda-sim:24")


ASK = """
import sys, dllm_fast
try:
    dllm_fast.load(sys.argv[1], device="cuda-sim")
except dllm_fast.DeviceError as error:
    print(error)
"""


def test_no_installation_has_the_simulator():
    """Nobody opened it in this process, and none lies beside the extension."""
    command = [sys.executable, "-c", ASK, MODELS / "llada_tiny"]
    package = str(pathlib.Path(_core.__file__).parents[1])  # the very package under test, wherever it was built
    said = subprocess.check_output(command, text=True, env=os.environ | {"PYTHONPATH": package}, cwd=MODELS)
    assert said.startswith("this installation has no GPU simulator: ")
