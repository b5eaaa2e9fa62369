// The widest vectors of 32-bit words of the processor that this is compiled for (-march=native): AVX-512, or AVX2 with FMA.
//
// A word is a float32 or two bfloat16.  LMTINY_VECTORS and LMTINY_BFLOAT16_VECTORS are defined where there are products of such.

#pragma once

#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>

#define LMTINY_VECTORS
#define LMTINY_INLINE __attribute__((always_inline)) inline

namespace vectors {

using Floats = __m512;
using Words = __m512i;
constexpr int64_t kLanes = 16;
constexpr int64_t kTileRows = 13;  // 26 registers of sums, 2 of B, 1 of A, of 32; 13 rows waste little of 64 or 128

LMTINY_INLINE Floats zeros() { return _mm512_setzero_ps(); }
LMTINY_INLINE Words no_words() { return _mm512_setzero_si512(); }
LMTINY_INLINE Words load(const uint32_t* from) { return _mm512_loadu_si512(from); }
LMTINY_INLINE Words repeat(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
LMTINY_INLINE void store(uint32_t* to, Words x) { _mm512_storeu_si512(to, x); }

// The first `bytes`, an even number, of what lies at `from`, and zeros: a vector's at most, none if it is below 0.
LMTINY_INLINE Words load_bytes(const char* from, int64_t bytes) {
  return bytes >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(bytes <= 0 ? 0 : (1u << (bytes / 2)) - 1, from);
}

LMTINY_INLINE __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }
LMTINY_INLINE Floats load_first(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first(count), from); }
LMTINY_INLINE void store_first(float* to, int64_t count, Floats x) { _mm512_mask_storeu_ps(to, first(count), x); }

LMTINY_INLINE Floats multiply_add(Floats sum, Words x, Words y) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), sum);
}

LMTINY_INLINE Words low32(Words x, Words y) { return _mm512_unpacklo_epi32(x, y); }
LMTINY_INLINE Words high32(Words x, Words y) { return _mm512_unpackhi_epi32(x, y); }
LMTINY_INLINE Words low64(Words x, Words y) { return _mm512_unpacklo_epi64(x, y); }
LMTINY_INLINE Words high64(Words x, Words y) { return _mm512_unpackhi_epi64(x, y); }

// Of 16 lines of four blocks of 128 bits: x[4 j + i] has lines 4 j .. 4 j + 3 of words i, i + 4, i + 8, i + 12.
LMTINY_INLINE void transpose_blocks(Words (&x)[16]) {
  Words y[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const Words low = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88), high = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
    const Words low2 = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88), high2 = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
    y[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    y[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    y[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = y[i];
}

#ifdef __AVX512BF16__

#define LMTINY_BFLOAT16_VECTORS

// As the instruction has it, numbers below 2^-126 count as 0.
LMTINY_INLINE Floats multiply_add_pairs(Floats sum, Words x, Words y) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y); }

// Writes the first `count` of 32 numbers, rounded to bfloat16.
LMTINY_INLINE void store_first(uint16_t* to, int64_t count, Floats left, Floats right) {
  const __mmask32 mask = count >= 32 ? ~0u : (1u << count) - 1;
  _mm512_mask_storeu_epi16(to, mask, (__m512i)_mm512_cvtne2ps_pbh(right, left));
}

// Puts bfloat16 of `even` and `odd` side by side; the first 16 of each, or the last.
LMTINY_INLINE Words paired(Words even, Words odd, bool last) {
  const Words order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34,
                                       2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(even, last ? _mm512_add_epi16(order, _mm512_set1_epi16(16)) : order, odd);
}

#endif

}  // namespace vectors

#elif defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

#define LMTINY_VECTORS
#define LMTINY_INLINE __attribute__((always_inline)) inline

namespace vectors {

using Floats = __m256;
using Words = __m256i;
constexpr int64_t kLanes = 8;
constexpr int64_t kTileRows = 6;  // 12 registers of sums, 2 of B, 1 of A, of 16

LMTINY_INLINE Floats zeros() { return _mm256_setzero_ps(); }
LMTINY_INLINE Words no_words() { return _mm256_setzero_si256(); }
LMTINY_INLINE Words load(const uint32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const Words*>(from)); }
LMTINY_INLINE Words repeat(uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
LMTINY_INLINE void store(uint32_t* to, Words x) { _mm256_storeu_si256(reinterpret_cast<Words*>(to), x); }

LMTINY_INLINE Words first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first `bytes`, of whole words, of what lies at `from`, and zeros: a vector's at most, none if it is below 0.
LMTINY_INLINE Words load_bytes(const char* from, int64_t bytes) {
  return bytes >= 32 ? _mm256_loadu_si256(reinterpret_cast<const Words*>(from))
                     : _mm256_maskload_epi32(reinterpret_cast<const int*>(from), first(bytes / 4));
}

LMTINY_INLINE Floats load_first(const float* from, int64_t count) {
  return count >= kLanes ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first(count));
}

LMTINY_INLINE void store_first(float* to, int64_t count, Floats x) {  // a masked store takes many cycles on AMD's
  count >= kLanes ? _mm256_storeu_ps(to, x) : _mm256_maskstore_ps(to, first(count), x);
}

LMTINY_INLINE Floats multiply_add(Floats sum, Words x, Words y) {
  return _mm256_fmadd_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), sum);
}

LMTINY_INLINE Words low32(Words x, Words y) { return _mm256_unpacklo_epi32(x, y); }
LMTINY_INLINE Words high32(Words x, Words y) { return _mm256_unpackhi_epi32(x, y); }
LMTINY_INLINE Words low64(Words x, Words y) { return _mm256_unpacklo_epi64(x, y); }
LMTINY_INLINE Words high64(Words x, Words y) { return _mm256_unpackhi_epi64(x, y); }

// Of 8 lines of two blocks of 128 bits: x[4 j + i] has lines 4 j .. 4 j + 3 of words i, i + 4.
LMTINY_INLINE void transpose_blocks(Words (&x)[8]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const Words low = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
    x[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
    x[i] = low;
  }
}

}  // namespace vectors

#endif

#ifdef LMTINY_VECTORS

namespace vectors {

// Transposes as many lines as a line has words: by 32 and by 64 bits inside of blocks of 128, then the blocks.
LMTINY_INLINE void transpose(Words (&x)[kLanes]) {
  Words y[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    y[i] = low32(x[i], x[i + 1]);
    y[i + 1] = high32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    x[i] = low64(y[i], y[i + 2]);
    x[i + 1] = high64(y[i], y[i + 2]);
    x[i + 2] = low64(y[i + 1], y[i + 3]);
    x[i + 3] = high64(y[i + 1], y[i + 3]);
  }
  transpose_blocks(x);
}

}  // namespace vectors

#endif
