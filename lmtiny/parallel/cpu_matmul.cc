// C = A B on XLA's threads, called by XLA as a custom call (jax.ffi): each piece by product.h, or by a BLAS's own sgemm.
//
// lmtiny/parallel/cpu_matmul.py compiles this, hands over the BLAS's function and says which operand is read transposed.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>

#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// BLAS of Fortran: columns first, everything by address.
using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*, const float*,
                       const int*, const float*, float*, const int*);
static Sgemm sgemm = nullptr;

// nullptr: product.h is to multiply float32 too.
extern "C" void lmtiny_set_sgemm(void* function) { sgemm = reinterpret_cast<Sgemm>(function); }

#ifdef LMTINY_VECTORS
constexpr bool kHasFloat32 = true;
#else
constexpr bool kHasFloat32 = false;
#endif
#ifdef LMTINY_BFLOAT16_VECTORS
constexpr bool kHasBfloat16 = true;
#else
constexpr bool kHasBfloat16 = false;
#endif

// Whether product.h was compiled for such numbers.
extern "C" int lmtiny_multiplies_float32() { return kHasFloat32; }
extern "C" int lmtiny_multiplies_bfloat16() { return kHasBfloat16; }

constexpr double kWorthTwoThreads = 2e6;  // FLOPs, some 20 us of one thread: no time to wake another
constexpr int64_t kRows = 16;             // sgemm's rows are cut at multiples of these, which suit vectors and cache lines

using product::divided_up;

// One call's products: `count` of [m, k] by [k, n], each cut into pieces of rows of C that any thread may take.
struct Work {
  const char *a, *b;
  char* c;
  int64_t m, n, k, count, pieces_each, rows_each;
  bool a_transposed, b_transposed, in_bfloat16, c_in_float32, by_sgemm;
  std::atomic<int64_t> taken{0}, done{0};

  int64_t pieces() const { return count * pieces_each; }

  void cut(int64_t threads) {
    int64_t wanted = divided_up(threads, count), multiple = kRows;  // pieces of each product
#ifdef LMTINY_VECTORS
    if (!by_sgemm) {
      wanted *= divided_up(divided_up(m, wanted), product::kPieceRows);
      multiple = product::kTileRows;
    }
#endif
    rows_each = divided_up(divided_up(m, wanted), multiple) * multiple;
    pieces_each = divided_up(m, rows_each);
  }

  void run_what_is_left() {
    for (int64_t piece; (piece = taken.fetch_add(1)) < pieces();) {
      run(piece / pieces_each, piece % pieces_each * rows_each);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  void run(int64_t number, int64_t row) const {
    const int64_t size = in_bfloat16 ? 2 : 4, a_step = a_transposed ? m : k, b_step = b_transposed ? k : n;
    const char *a_row = a + size * (number * m * k + (a_transposed ? row : row * k)), *b_here = b + size * number * k * n;
    char* c_row = c + (c_in_float32 ? 4 : 2) * (number * m + row) * n;
    const int64_t rows = std::min(rows_each, m - row);
    if (by_sgemm) {
      multiply(reinterpret_cast<const float*>(a_row), a_step, reinterpret_cast<const float*>(b_here), b_step,
               reinterpret_cast<float*>(c_row), rows);
      return;
    }
#ifdef LMTINY_VECTORS
    const product::Product piece = {a_row, b_here, c_row, rows, n, k, a_step, b_step, n, a_transposed, b_transposed, c_in_float32};
    // Without vectors of bfloat16 there is none to compile, and Matmul has refused such operands.
    in_bfloat16 ? product::multiply<kHasBfloat16>(piece) : product::multiply<false>(piece);
#endif
  }

  // C^T = B^T A^T, since what Fortran reads column by column is the transpose of what lies there row by row.
  void multiply(const float* a_row, int a_step, const float* b_here, int b_step, float* c_row, int rows) const {
    const int columns = n, inner = k;
    const char a_as = a_transposed ? 'T' : 'N', b_as = b_transposed ? 'T' : 'N';
    const float one = 1, zero = 0;
    sgemm(&b_as, &a_as, &columns, &rows, &inner, &one, b_here, &b_step, a_row, &a_step, &zero, c_row, &columns);
  }
};

static ffi::Error Matmul(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> c, bool a_transposed,
                         bool b_transposed) {
  const auto a_shape = a.dimensions(), c_shape = c->dimensions();
  const size_t rank = c_shape.size();
  auto work = std::make_shared<Work>();  // a thread that comes late still reads it
  work->in_bfloat16 = a.element_type() == ffi::BF16, work->c_in_float32 = c->element_type() == ffi::F32;
  if ((a.element_type() != ffi::F32 && !work->in_bfloat16) || b.element_type() != a.element_type() || rank < 2 || a_shape.size() != rank ||
      (!work->c_in_float32 && c->element_type() != a.element_type()))
    return ffi::Error::Internal("cpu_matmul: operands of different types or rank");
  work->by_sgemm = !work->in_bfloat16 && sgemm != nullptr;
  if (!work->by_sgemm && !(work->in_bfloat16 ? kHasBfloat16 : kHasFloat32))
    return ffi::Error::Internal("cpu_matmul: compiled without products of this type, and no BLAS was set");
  work->a = static_cast<const char*>(a.untyped_data()), work->b = static_cast<const char*>(b.untyped_data());
  work->c = static_cast<char*>(c->untyped_data());
  work->m = c_shape[rank - 2], work->n = c_shape[rank - 1], work->k = a_shape[a_transposed ? rank - 2 : rank - 1];
  work->a_transposed = a_transposed, work->b_transposed = b_transposed;
  work->count = 1;
  for (size_t axis = 0; axis + 2 < rank; axis++) work->count *= c_shape[axis];
  if (work->k == 0) std::memset(work->c, 0, c->size_bytes());
  if (work->k == 0 || c->element_count() == 0) return ffi::Error::Success();
  if (std::max({work->m, work->n, work->k}) > std::numeric_limits<int>::max())
    return ffi::Error::InvalidArgument("cpu_matmul: rows and columns are counted up to 2^31");

  const double flops = 2.0 * work->count * work->m * work->n * work->k;
  const int64_t threads = flops < kWorthTwoThreads ? 1 : std::max<int64_t>(1, pool.num_threads());
  work->cut(threads);
  // This thread does all that no other takes, so that it only ever waits for one that is at work.
  for (int64_t thread = 1; thread < std::min(threads, work->pieces()); thread++) pool.Schedule([work] { work->run_what_is_left(); });
  work->run_what_is_left();
  for (int looked = 0; work->done.load(std::memory_order_acquire) < work->pieces(); looked++)
    if (looked > 1000) std::this_thread::yield();
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(LmtinyMatmul, Matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("a_transposed")
                                  .Attr<bool>("b_transposed"));
