"""GPUs as data: what XLA needs to compile for one that is not here, and what the time model needs to know of it.

Sources of the device descriptions: XLA's own (github.com/openxla/xla, xla/backends/gpu/target_config/specs:
h100_sxm, h200, a100_sxm_80, b200), read in November 2026. XLA has none of the L4 and the RTX 4090: theirs are from
NVIDIA's data sheet of the L4, NVIDIA's Ada architecture whitepaper (appendix A) and, for the limits of a compute
capability, table "Compute Capabilities" of the CUDA programming guide. No description was read from a card.

Sources of the rates, all dense (without sparsity): NVIDIA's data sheets of H100, H200, A100, L4 and HGX B200, and
the Ada whitepaper (tensor products of 16-bit numbers with float32 sums).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        name: as the driver reports it, and `jax.Device.device_kind` with it.
        compute_capability: (major, minor).
        cores: streaming multiprocessors; `clock` is their boost clock in GHz.
        float32_units: of one core.
        threads: resident on one core at most.
        shared_memory, shared_memory_block: bytes of one core, and of one block that asks for it.
        memory, l2_cache: bytes.
        bandwidth: of the memory, bytes per second.
        bfloat16, tf32: peak rate of matrix products, operations per second; a multiply-add is two.
        link: to the other GPUs of a host, bytes per second in one direction: NVLink, or PCIe 4.0 x16 (L4, RTX 4090).
    """

    name: str
    compute_capability: tuple[int, int]
    cores: int
    clock: float
    float32_units: int
    threads: int
    shared_memory: int
    shared_memory_block: int
    memory: int
    l2_cache: int
    bandwidth: float
    bfloat16: float
    tf32: float
    link: float

    @property
    def float32(self) -> float:
        """Peak rate of float32 arithmetic outside the matrix units, operations per second."""
        return self.cores * self.float32_units * 2 * self.clock * 1e9

    @property
    def target_config(self) -> str:
        """The text form of XLA's GpuTargetConfigProto (xla/stream_executor/device_description.proto)."""
        major, minor = self.compute_capability
        return f"""
            gpu_device_info {{
                cuda_compute_capability {{ major: {major} minor: {minor} }}
                core_count: {self.cores} fpus_per_core: {self.float32_units} clock_rate_ghz: {self.clock}
                threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {self.threads}
                registers_per_core_limit: 65536 registers_per_block_limit: 65536
                shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_memory_block}
                shared_memory_per_core: {self.shared_memory}
                block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
                device_memory_size: {self.memory} memory_bandwidth: {int(self.bandwidth)}
                l2_cache_size: {self.l2_cache}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 28 }}
            runtime_version {{ major: 13 }}
            device_description_str: "{self.name}"
        """


_H100 = Card(
    name="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    cores=132,
    clock=1.98,
    float32_units=128,
    threads=2048,
    shared_memory=233472,
    shared_memory_block=232448,
    memory=84929347584,
    l2_cache=52428800,
    bandwidth=3352.32e9,
    bfloat16=989.4e12,
    tf32=494.7e12,
    link=450e9,
)
_RTX_4090 = Card(
    name="NVIDIA GeForce RTX 4090",
    compute_capability=(8, 9),
    cores=128,
    clock=2.52,
    float32_units=128,
    threads=1536,
    shared_memory=102400,
    shared_memory_block=101376,
    memory=24 * 2**30,
    l2_cache=72 * 2**20,
    bandwidth=1008e9,
    bfloat16=165.2e12,
    tf32=82.6e12,
    link=32e9,
)

CARDS = {
    "h100": _H100,
    "h200": replace(_H100, name="NVIDIA H200", memory=151397597184, bandwidth=4800e9),
    "a100": Card(
        name="NVIDIA A100-SXM4-80GB",
        compute_capability=(8, 0),
        cores=108,
        clock=1.41,
        float32_units=64,
        threads=2048,
        shared_memory=167936,
        shared_memory_block=166912,
        memory=85100068864,
        l2_cache=41943040,
        bandwidth=2039.04e9,
        bfloat16=312e12,
        tf32=156e12,
        link=300e9,
    ),
    "b200": Card(
        name="NVIDIA B200",
        compute_capability=(10, 0),
        cores=148,
        clock=1.965,
        float32_units=128,
        threads=2048,
        shared_memory=233472,
        shared_memory_block=232448,
        memory=191514411008,
        l2_cache=132644864,
        bandwidth=7672.32e9,
        bfloat16=2250e12,
        tf32=1100e12,
        link=900e9,
    ),
    "l4": replace(
        _RTX_4090,
        name="NVIDIA L4",
        cores=58,
        clock=2.04,
        l2_cache=48 * 2**20,
        bandwidth=300e9,
        bfloat16=121e12,
        tf32=60e12,
    ),
    "rtx4090": _RTX_4090,
}
