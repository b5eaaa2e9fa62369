// C = A B of float32 matrices by a BLAS's own sgemm, shared out over XLA's threads; called by XLA as a custom call (jax.ffi).
//
// lmtiny/parallel/cpu_matmul.py compiles this, hands over the BLAS's function and says which operand is read transposed.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// BLAS of Fortran: columns first, everything by address.
using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*, const float*,
                       const int*, const float*, float*, const int*);
static Sgemm sgemm = nullptr;

extern "C" void lmtiny_set_sgemm(void* function) { sgemm = reinterpret_cast<Sgemm>(function); }

constexpr double kWorthTwoThreads = 2e6;  // FLOPs, some 20 us of one thread: no time to wake another
constexpr int64_t kRows = 16;             // rows are cut at multiples of these, which suit vectors and cache lines

// One call's products: `count` of [m, k] by [k, n], each cut into pieces of rows of C that any thread may take.
struct Work {
  const float *a, *b;
  float* c;
  int64_t m, n, k, count, pieces_each, rows_each;
  bool a_transposed, b_transposed;
  std::atomic<int64_t> taken{0}, done{0};

  int64_t pieces() const { return count * pieces_each; }

  void run_what_is_left() {
    for (int64_t piece; (piece = taken.fetch_add(1)) < pieces();) {
      run(piece / pieces_each, piece % pieces_each * rows_each);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  // C^T = B^T A^T, since what Fortran reads column by column is the transpose of what lies there row by row.
  void run(int64_t number, int64_t row) const {
    const int rows = std::min(rows_each, m - row), columns = n, inner = k;
    const int a_step = a_transposed ? m : k, b_step = b_transposed ? k : n;
    const char a_as = a_transposed ? 'T' : 'N', b_as = b_transposed ? 'T' : 'N';
    const float one = 1, zero = 0;
    const float* a_row = a + number * m * k + (a_transposed ? row : row * k);
    sgemm(&b_as, &a_as, &columns, &rows, &inner, &one, b + number * k * n, &b_step, a_row, &a_step, &zero,
          c + number * m * n + row * n, &columns);
  }
};

static ffi::Error Matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> a, ffi::Buffer<ffi::F32> b, ffi::ResultBuffer<ffi::F32> c,
                         bool a_transposed, bool b_transposed) {
  const auto a_shape = a.dimensions(), c_shape = c->dimensions();
  const size_t rank = c_shape.size();
  if (sgemm == nullptr || rank < 2 || a_shape.size() != rank) return ffi::Error::Internal("cpu_matmul: no BLAS was set, or operands of different rank");
  auto work = std::make_shared<Work>();  // a thread that comes late still reads it
  work->a = a.typed_data(), work->b = b.typed_data(), work->c = c->typed_data();
  work->m = c_shape[rank - 2], work->n = c_shape[rank - 1], work->k = a_shape[a_transposed ? rank - 2 : rank - 1];
  work->a_transposed = a_transposed, work->b_transposed = b_transposed;
  work->count = 1;
  for (size_t axis = 0; axis + 2 < rank; axis++) work->count *= c_shape[axis];
  if (work->k == 0) std::fill_n(work->c, c->element_count(), 0.0f);
  if (work->k == 0 || c->element_count() == 0) return ffi::Error::Success();
  if (std::max({work->m, work->n, work->k}) > std::numeric_limits<int>::max())
    return ffi::Error::InvalidArgument("cpu_matmul: a BLAS counts rows and columns up to 2^31");

  const double flops = 2.0 * work->count * work->m * work->n * work->k;
  const int64_t threads = flops < kWorthTwoThreads ? 1 : std::max<int64_t>(1, pool.num_threads());
  const int64_t wanted = (threads + work->count - 1) / work->count;  // pieces of each product
  work->rows_each = ((work->m + wanted - 1) / wanted + kRows - 1) / kRows * kRows;
  work->pieces_each = (work->m + work->rows_each - 1) / work->rows_each;
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
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("a_transposed")
                                  .Attr<bool>("b_transposed"));
