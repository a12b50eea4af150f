"""Both frameworks' numerical switches, set for the length of a run and put back after it."""

import contextlib
import sys
from collections.abc import Generator

import jax


@contextlib.contextmanager
def exact_arithmetic(precision: str) -> Generator[dict[str, str | bool]]:
    """Gradients, no TF32, no fast matrix products, deterministic cuDNN; float64 in JAX where `precision` asks for it.

    Yields the settings that hold inside, for the report. All of them are restored on leaving, also after an exception:
    the caller may be anyone's test run.
    """
    with (
        jax.enable_x64(precision == "float64"),
        jax.default_matmul_precision("highest"),
        _exact_torch() as switches,
    ):
        yield {
            "jax_enable_x64": jax.config.read("jax_enable_x64"),
            "jax_default_matmul_precision": "highest",
            **switches,
        }


@contextlib.contextmanager
def _exact_torch() -> Generator[dict[str, str | bool]]:
    """PyTorch's switches, where a caller has imported it: without it there is no network of its."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield {}
        return
    cuda_tf32 = torch.backends.cuda.matmul.allow_tf32
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield {
                "torch_cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
                "torch_cuda_matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
                "torch_cudnn_deterministic": torch.backends.cudnn.deterministic,
            }
        finally:
            torch.backends.cuda.matmul.allow_tf32 = cuda_tf32
