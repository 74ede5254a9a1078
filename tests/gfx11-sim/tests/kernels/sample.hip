typedef half half16 __attribute__((ext_vector_type(16)));
typedef float float8 __attribute__((ext_vector_type(8)));
typedef int int4v __attribute__((ext_vector_type(4)));

// Sums a row of n floats: registers, lanes, then LDS between waves.
KERNEL row_sum(const float* x, float* y, int n) {
  __shared__ float part[32];
  float s = 0;
  for (int i = tid(); i < n; i += bdim()) s += x[bid() * n + i];
  for (int d = 16; d > 0; d >>= 1)
    s += __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((tid() ^ d) << 2, __builtin_bit_cast(int, s)));
  if ((tid() & 31) == 0) part[tid() / 32] = s;
  barrier();
  if (tid() == 0) {
    float t = 0;
    for (int i = 0; i < bdim() / 32; i++) t += part[i];
    y[bid()] = t;
  }
}

// A row's softmax, one wave a row, in exp2.
KERNEL softmax(const float* x, float* y, int n) {
  float m = -__builtin_inff();
  for (int i = tid(); i < n; i += 32) m = __builtin_fmaxf(m, x[bid() * n + i]);
  for (int d = 16; d > 0; d >>= 1)
    m = __builtin_fmaxf(m, __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((tid() ^ d) << 2, __builtin_bit_cast(int, m))));
  float s = 0;
  for (int i = tid(); i < n; i += 32) s += __builtin_amdgcn_exp2f((x[bid() * n + i] - m) * 1.44269504f);
  for (int d = 16; d > 0; d >>= 1)
    s += __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((tid() ^ d) << 2, __builtin_bit_cast(int, s)));
  for (int i = tid(); i < n; i += 32) y[bid() * n + i] = __builtin_amdgcn_exp2f((x[bid() * n + i] - m) * 1.44269504f) / s;
}

// C = A B^T of f16, k a multiple of 16, one wave a tile of 16 by 16, through LDS.
KERNEL gemm(const half* a, const half* b, float* c, int n, int k) {
  __shared__ half sa[16 * 16], sb[16 * 16];
  int row = __builtin_amdgcn_workgroup_id_y() * 16, column = bid() * 16, lane = tid();
  float8 acc = {};
  for (int at = 0; at < k; at += 16) {
    barrier();
    for (int i = lane; i < 256; i += 32) {
      sa[i] = a[(row + i / 16) * k + at + i % 16];
      sb[i] = b[(column + i / 16) * k + at + i % 16];
    }
    barrier();
    half16 fa = *(const half16*)(sa + lane % 16 * 16), fb = *(const half16*)(sb + lane % 16 * 16);
    acc = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(fa, fb, acc);
  }
  for (int v = 0; v < 8; v++) c[(row + 2 * v + lane / 16) * n + column + lane % 16] = acc[v];
}

// i32 matrices of signed by unsigned bytes.
KERNEL gemm_i8(const int4v* a, const int4v* b, int* c) {
  int lane = tid();
  typedef int int8v __attribute__((ext_vector_type(8)));
  int8v acc = {1, 2, 3, 4, 5, 6, 7, 8};
  acc = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, a[lane % 16], false, b[lane % 16], acc, false);
  for (int v = 0; v < 8; v++) c[(2 * v + lane / 16) * 16 + lane % 16] = acc[v];
}

KERNEL dots(const int* a, const int* b, int* out) {
  int i = bid() * bdim() + tid();
  int s = __builtin_amdgcn_sudot4(true, a[i], true, b[i], 5, false);
  s += 3 * __builtin_amdgcn_sudot4(false, a[i], true, b[i], 0, false);
  s += 7 * __builtin_amdgcn_sudot8(true, a[i], false, b[i], 0, false);
  out[i] = s;
}

KERNEL counts(const uint* x, uint* bins, int n) {
  __shared__ uint local[16];
  if (tid() < 16) local[tid()] = 0;
  barrier();
  for (int i = bid() * bdim() + tid(); i < n; i += 4 * bdim()) __hip_atomic_fetch_add(&local[x[i] & 15], 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
  barrier();
  if (tid() < 16) __hip_atomic_fetch_add(&bins[tid()], local[tid()], __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

KERNEL divisions(const float* a, const float* b, float* q, float* r, double* d, int n) {
  int i = bid() * bdim() + tid();
  if (i >= n) return;
  q[i] = a[i] / b[i];
  r[i] = __builtin_sqrtf(__builtin_fabsf(a[i]));
  d[i] = (double)a[i] / (double)b[i];
}

// All workgroups meet: each waits for the last.
KERNEL meet(uint* arrived, uint* out) {
  if (tid() == 0) {
    __hip_atomic_fetch_add(arrived, 1u, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_AGENT);
    while (__hip_atomic_load(arrived, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_AGENT) < 24) __builtin_amdgcn_s_sleep(1);
  }
  barrier();
  out[bid() * bdim() + tid()] = *arrived;
}

KERNEL no_barrier(const float* x, float* y) {
  __shared__ float s[64];
  s[tid()] = x[tid()];
  y[tid()] = s[63 - tid()];
}

KERNEL reverse(const float* x, float* y) {
  __shared__ float s[64];
  s[tid()] = x[tid()];
  barrier();
  y[tid()] = s[63 - tid()];
}

KERNEL lds_at(const int* at, float* y) {
  __shared__ float s[64];
  s[tid()] = 1;
  barrier();
  y[tid()] = s[at[0]];
}
