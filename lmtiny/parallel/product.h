// C = A B on one thread, of float32 matrices or of bfloat16 ones summed in float32; C is rounded as it is written.
//
// Panels of A and B are copied so that the inner loop reads both in order (Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008); a tile of C stays in registers for all of the sum, so that nothing in float32 is written that is not asked for.
// What is copied are words of 32 bits: a float32, or two bfloat16 that are neighbours in the sum, of one row of A or one column of B.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "vectors.h"

namespace product {

inline int64_t divided_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

// What a piece reads and writes; steps are numbers from one row to the next, of what lies in memory.
struct Product {
  const char *a, *b;  // a: [rows, inner] or, transposed, [inner, rows]; b: [inner, columns] or [columns, inner]
  char* c;
  int64_t rows, columns, inner, a_step, b_step, c_step;
  bool a_transposed, b_transposed, c_in_float32;
};

#ifdef LMTINY_VECTORS

using vectors::kLanes;
using vectors::kTileRows;
constexpr int64_t kTileColumns = 2 * kLanes;
constexpr int64_t kPieceRows = 520 / kTileRows * kTileRows;  // of A that are copied at a time
constexpr int64_t kBlockBytes = kLanes * (24 << 10);          // of B that are copied at a time, less than a core's own cache
constexpr int64_t kTerms = 2048;                              // of a sum, in the copies at a time

// Float32 is one term of a sum a word, bfloat16 two.
template <bool kPairs>
constexpr int64_t kSize = kPairs ? 2 : 4;

template <bool kPairs>
int64_t words_of(int64_t terms) {
  return kPairs ? (terms + 1) / 2 : terms;
}

// Copies lines whose numbers lie one after the other (rows of A, or of a transposed B), kLanes at most, to to[word][line].
template <bool kPairs>
void copy_lines(const char* from, int64_t step, int64_t lines, int64_t inner, uint32_t* to, int64_t to_step) {
  const int64_t words = words_of<kPairs>(inner), bytes = inner * kSize<kPairs>;
  for (int64_t first = 0; first < words; first += kLanes) {
    vectors::Words x[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; i++)
      x[i] = i < lines ? vectors::load_bytes(from + i * step * kSize<kPairs> + 4 * first, bytes - 4 * first) : vectors::no_words();
    vectors::transpose(x);
    const int64_t left = std::min(kLanes, words - first);
    if (left == kLanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; i++) vectors::store(to + (first + i) * to_step, x[i]);
    } else {
      for (int64_t i = 0; i < left; i++) vectors::store(to + (first + i) * to_step, x[i]);
    }
  }
}

// Copies lines that lie beside each other (columns of B, or of a transposed A), in panels of `wide`, kTileColumns at most, to
// to[panel][word][line]; a panel's words have room for kLanes lines or for twice as many.
template <bool kPairs>
void copy_beside(const char* from, int64_t step, int64_t lines, int64_t inner, int64_t wide, uint32_t* to) {
  const int64_t words = words_of<kPairs>(inner), room = wide > kLanes ? kTileColumns : kLanes;
  const int64_t at_once = 32;  // words: few pages of memory are read at a time
  for (int64_t first = 0; first < words; first += at_once)
    for (int64_t line = 0; line < lines; line += wide) {
      const int64_t left = std::min(wide, lines - line) * kSize<kPairs>;  // bytes
      uint32_t* out = to + line / wide * words * room;
      for (int64_t word = first; word < std::min(words, first + at_once); word++) {
        if constexpr (kPairs) {
#ifdef LMTINY_BFLOAT16_VECTORS
          const char* row = from + (2 * word * step + line) * 2;
          const vectors::Words even = vectors::load_bytes(row, left);
          const vectors::Words odd = 2 * word + 1 < inner ? vectors::load_bytes(row + 2 * step, left) : vectors::no_words();
          vectors::store(out + word * room, vectors::paired(even, odd, false));
          if (room > kLanes) vectors::store(out + word * room + kLanes, vectors::paired(even, odd, true));
#endif
        } else {
          const char* row = from + (word * step + line) * 4;
          vectors::store(out + word * room, vectors::load_bytes(row, left));
          if (room > kLanes) vectors::store(out + word * room + kLanes, vectors::load_bytes(row + 4 * kLanes, left - 4 * kLanes));
        }
      }
    }
}

// Where a tile's sums come from and go to.
struct Place {
  const float* before;  // what they begin at; nullptr: 0
  int64_t before_step;
  char* to;
  int64_t step;
  bool in_float32;
};

// Computes a tile of C, kRows x `columns` (kTileColumns at most), from a panel of A [word][kLanes] and one of B [word][kTileColumns].
template <bool kPairs, int kRows>
void tile(const uint32_t* a, const uint32_t* b, int64_t words, int64_t columns, const Place& place) {
  vectors::Floats sums[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++) {
    const float* before = place.before + i * place.before_step;
    sums[i][0] = place.before ? vectors::load_first(before, columns) : vectors::zeros();
    sums[i][1] = place.before ? vectors::load_first(before + kLanes, columns - kLanes) : vectors::zeros();
  }
  for (int64_t word = 0; word < words; word++, a += kLanes, b += kTileColumns) {
    const vectors::Words b0 = vectors::load(b), b1 = vectors::load(b + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      const vectors::Words x = vectors::repeat(a[i]);
      if constexpr (kPairs) {
#ifdef LMTINY_BFLOAT16_VECTORS
        sums[i][0] = vectors::multiply_add_pairs(sums[i][0], x, b0);
        sums[i][1] = vectors::multiply_add_pairs(sums[i][1], x, b1);
#endif
      } else {
        sums[i][0] = vectors::multiply_add(sums[i][0], x, b0);
        sums[i][1] = vectors::multiply_add(sums[i][1], x, b1);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++) {
    if (place.in_float32) {
      float* to = reinterpret_cast<float*>(place.to) + i * place.step;
      vectors::store_first(to, columns, sums[i][0]);
      vectors::store_first(to + kLanes, columns - kLanes, sums[i][1]);
    } else {
#ifdef LMTINY_BFLOAT16_VECTORS
      vectors::store_first(reinterpret_cast<uint16_t*>(place.to) + i * place.step, columns, sums[i][0], sums[i][1]);
#endif
    }
  }
}

// Calls tile of as many rows.
template <bool kPairs, int... kRows>
void tile_of(int64_t rows, std::integer_sequence<int, kRows...>, const uint32_t* a, const uint32_t* b, int64_t words, int64_t columns,
             const Place& place) {
  constexpr void (*kTiles[])(const uint32_t*, const uint32_t*, int64_t, int64_t, const Place&) = {tile<kPairs, kRows + 1>...};
  kTiles[rows - 1](a, b, words, columns, place);
}

constexpr std::make_integer_sequence<int, kTileRows> kAllRows;

inline uint32_t* room(std::vector<uint32_t>& copy, int64_t count) {
  if (static_cast<int64_t>(copy.size()) < count) copy.resize(count);
  return copy.data();
}

// Computes terms first .. first + inner - 1 of the sums, and adds what stands at `sums`, if `add`; to C if `last`, else to `sums`.
template <bool kPairs>
void multiply_some(const Product& product, int64_t first, int64_t inner, float* sums, int64_t sums_step, bool add, bool last) {
  thread_local std::vector<uint32_t> copy_of_a, copy_of_b;
  const int64_t size = kSize<kPairs>, words = words_of<kPairs>(inner), panels = divided_up(product.rows, kTileRows);
  const int64_t most = std::max<int64_t>(1, kBlockBytes / (4 * words) / kTileColumns) * kTileColumns;  // columns of B at a time
  uint32_t* a = room(copy_of_a, panels * words * kLanes);
  uint32_t* b = room(copy_of_b, std::min(most, divided_up(product.columns, kTileColumns) * kTileColumns) * words);
  if (product.a_transposed) {
    copy_beside<kPairs>(product.a + size * first * product.a_step, product.a_step, product.rows, inner, kTileRows, a);
  } else {
    for (int64_t row = 0; row < product.rows; row += kTileRows)
      copy_lines<kPairs>(product.a + size * (row * product.a_step + first), product.a_step, std::min(kTileRows, product.rows - row), inner,
                         a + row / kTileRows * words * kLanes, kLanes);
  }
  for (int64_t left = 0; left < product.columns; left += most) {
    const int64_t columns = std::min(most, product.columns - left);
    if (product.b_transposed) {
      for (int64_t column = 0; column < columns; column += kLanes) {
        const char* from = product.b + size * ((left + column) * product.b_step + first);
        uint32_t* to = b + column / kTileColumns * words * kTileColumns + column % kTileColumns;
        copy_lines<kPairs>(from, product.b_step, std::min(kLanes, columns - column), inner, to, kTileColumns);
      }
    } else {
      copy_beside<kPairs>(product.b + size * (first * product.b_step + left), product.b_step, columns, inner, kTileColumns, b);
    }
    for (int64_t row = 0; row < product.rows; row += kTileRows)
      for (int64_t column = 0; column < columns; column += kTileColumns) {
        float* here = sums + row * sums_step + left + column;
        char* c = product.c + (row * product.c_step + left + column) * (product.c_in_float32 ? 4 : 2);
        Place place = {add ? here : nullptr, sums_step, reinterpret_cast<char*>(here), sums_step, true};
        if (last) place.to = c, place.step = product.c_step, place.in_float32 = product.c_in_float32;
        tile_of<kPairs>(std::min(kTileRows, product.rows - row), kAllRows, a + row / kTileRows * words * kLanes,
                        b + column / kTileColumns * words * kTileColumns, words, columns - column, place);
      }
  }
}

// Computes a product; of more than kPieceRows rows, so many had best be given at a time.
template <bool kPairs>
void multiply(const Product& product) {
  const int64_t parts = divided_up(product.inner, kTerms), each = divided_up(divided_up(product.inner, parts), 2) * 2;
  thread_local std::vector<uint32_t> wide;
  float* sums = reinterpret_cast<float*>(product.c);  // those in float32 stand in C meanwhile, where C is in float32
  if (parts > 1 && !product.c_in_float32) sums = reinterpret_cast<float*>(room(wide, product.rows * product.columns));
  const int64_t step = product.c_in_float32 ? product.c_step : product.columns;
  for (int64_t first = 0; first < product.inner; first += each)
    multiply_some<kPairs>(product, first, std::min(each, product.inner - first), sums, step, first > 0, first + each >= product.inner);
}

#endif

}  // namespace product
