"""What only a GPU shows: deterministic kernels, loss scaling, NCCL and synchronised batch norm."""

import pytest
import torch

from tests import small_runs
from tests.small_runs import checkpoint, differing, train

ITERATIONS = 5
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_deterministic_runs_and_resumes_end_with_the_same_bits(stage, amp, data, weights, tmp_path):
    flags = {"device": "cuda", "deterministic": True, "amp": amp}
    train(stage, data, weights, tmp_path / "whole", **flags)
    with small_runs.stopped_after(2):
        train(stage, data, weights, tmp_path / "parts", **flags)
    train(stage, data, weights, tmp_path / "parts", resume=True, **flags)
    found, expected = (checkpoint(tmp_path / name, ITERATIONS) for name in ("parts", "whole"))
    assert not differing(found, expected)
    assert bool(expected["precision"]) == (amp == "fp16")


@pytest.mark.parametrize("stage", ["source_only", "warmup", "stage2_distill"])
def test_a_gpu_computes_what_a_cpu_does(stage, data, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for device in ("cuda", "cpu"):
        train(stage, data, weights, tmp_path / device, device=device, dropout=0.0, freeze_bn=True, iterations=1)
    found, expected = (small_runs.numbers(checkpoint(tmp_path / d, 1)["student"]) for d in ("cuda", "cpu"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: key + text)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_nccl_with_synchronised_batch_norm_equals_one_process(stage, number, data, weights, tmp_path):
    """Batch norm learns here, where the stage lets it: its statistics are those of the global batch."""
    if torch.cuda.device_count() < number:
        pytest.skip(f"needs {number} GPUs")
    for name, more in (("one", {}), ("many", {"nproc_per_node": number, "backend": "nccl"})):
        flags = {"device": "cuda", "deterministic": True, "iterations": 2, "lr": 0.001, **more}
        run = small_runs.launch(small_runs.command(stage, data, weights, tmp_path / name, **flags))
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, out[-2000:] + err[-4000:]
    found, expected = (small_runs.numbers(checkpoint(tmp_path / name, 2)["student"]) for name in ("many", "one"))
    for key, value in expected.items():
        if "num_batches_tracked" not in key:  # of the synchronised class alone
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3, msg=lambda text, key=key: key + text)
