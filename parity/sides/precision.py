"""Both frameworks' numerical switches, set for the length of a run and put back after it."""

import contextlib
from collections.abc import Generator

import jax


@contextlib.contextmanager
def exact_arithmetic(precision: str) -> Generator[dict[str, str | bool]]:
    """Gradients, no TF32, no fast matrix products, deterministic cuDNN; float64 in JAX where `precision` asks for it.

    Yields the settings that hold inside, for the report. All of them are restored on leaving, also after an exception:
    the caller may be anyone's test run.
    """
    import torch

    cuda_tf32 = torch.backends.cuda.matmul.allow_tf32
    with (
        jax.enable_x64(precision == "float64"),
        torch.inference_mode(False),
        torch.enable_grad(),
        jax.default_matmul_precision("highest"),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield {
                "jax_enable_x64": jax.config.read("jax_enable_x64"),
                "jax_default_matmul_precision": "highest",
                "torch_cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
                "torch_cuda_matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
                "torch_cudnn_deterministic": torch.backends.cudnn.deterministic,
            }
        finally:
            torch.backends.cuda.matmul.allow_tf32 = cuda_tf32
