"""GPUs that are not there, as XLA is told of them, and what a program compiled for one would launch."""

import math
import re

# Bytes a second to and from memory. H100: SXM, 80 GB; A100: SXM, 80 GB.
BANDWIDTH = {'h100': 3_352_320_000_000, 'a100': 2_039_000_000_000}
_DESCRIBED = {
    'h100': dict(
        major=9, core_count=132, clock_rate_ghz=1.98, l2_cache_size=52_428_800, device_memory_size=84_942_979_072,
        shared_memory_per_core=233_472, shared_memory_per_block_optin=232_448, name='NVIDIA H100 80GB HBM3',
    ),
    'a100': dict(
        major=8, core_count=108, clock_rate_ghz=1.41, l2_cache_size=41_943_040, device_memory_size=84_987_740_160,
        shared_memory_per_core=167_936, shared_memory_per_block_optin=166_912, name='NVIDIA A100-SXM4-80GB',
    ),
}
_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {core_count} fpus_per_core: {fpus_per_core} clock_rate_ghz: {clock_rate_ghz}
  memory_bandwidth: {memory_bandwidth} device_memory_size: {device_memory_size} l2_cache_size: {l2_cache_size}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
_ARRAY = re.compile(r'\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]')
# `%name = type operation(%operand, ...), ...`; the type of several results has brackets around it.
_INSTRUCTION = re.compile(r' +(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)')
# What is no kernel, copy or library call. Of a loop its body is.
_NAMES_ALONE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'after-all',
    'partition-id', 'replica-id',
}


def target(name):
  """XLA's description (a GpuTargetConfigProto as text) of 'h100' or 'a100'."""
  described = _DESCRIBED[name]
  fpus_per_core = 128 if described['major'] == 9 else 64
  return _TARGET.format(**described, memory_bandwidth=BANDWIDTH[name], fpus_per_core=fpus_per_core)


def launches(text):
  """What a step of a compiled program launches.

  Args:
    text: of the optimised program. Of its computations that one counts that moves most: what a loop over steps repeats,
      or the whole of a program without one.

  Returns:
    How many kernels, copies and library calls, and how many bytes they read and write: each operand and each result
    whole, also where it is in a cache.
  """
  fused = set(re.findall(r'(?:calls|to_apply)=%([\w.-]+)', text))
  parts = re.split(r'\n(?:ENTRY )?%([\w.-]+) \([^\n]* -> [^\n]* \{\n', text)
  launched = [_launched(lines) for name, lines in zip(parts[1::2], parts[2::2], strict=True) if name not in fused]
  return max(launched, key=lambda counted: counted[1])


def _launched(lines):
  """(kernels, bytes) of one computation."""
  found = [one.groups() for one in map(_INSTRUCTION.match, lines.splitlines()) if one]
  sizes = {name: _bytes(kind) for name, kind, _, _ in found}
  kernels = [one for one in found if one[2] not in _NAMES_ALONE and not one[2].endswith('-done')]
  operands = lambda listed: sum(sizes.get(name, 0) for name in re.findall(r'%([\w.-]+)', listed))
  return len(kernels), sum(sizes[name] + operands(listed) for name, _, _, listed in kernels)


def _bytes(kind):
  """Of an array's type, or of several arrays'."""
  found = (({'pred': 8, 'bf16': 16}.get(bits) or int(bits[1:]), dims) for bits, dims in _ARRAY.findall(kind))
  return sum(bits // 8 * math.prod(int(n) for n in dims.split(',') if n) for bits, dims in found)
