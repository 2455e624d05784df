// SPDX-License-Identifier: Apache-2.0
// The pybind11 module softdiff_kernels._native: checks, then launches. It knows addresses, sizes and strides, and no
// torch. Every op is a function of (threads, a tuple of what its `read` in args.h takes).
#include "cpu/driver.h"
#include "cpu/plan_cache.h"
#include "parse.h"

#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace softdiff {
namespace {

std::string shown(double value) { return py::repr(py::float_(value)).cast<std::string>(); }

// A call whose coefficients are in host memory, so that every sample's value is checked.
class CheckedCall : public Call {
 public:
  using Call::Call;

  Coefficient coefficient(const char* name, double absent = 1.0) {
    return checked(name, Call::coefficient(name, absent), false);
  }
  Coefficient signed_coefficient(const char* name) { return checked(name, Call::signed_coefficient(name), true); }

  void ordered(const char* low, const Coefficient& s, const char* high, const Coefficient& t) {
    for (int64_t b = 0; b < shape_.b; ++b) {
      if (s.at(b) <= t.at(b)) continue;
      throw py::value_error(op() + ": expected " + low + " <= " + high + " (a step towards the clean image), got " +
                            shown(s.at(b)) + " > " + shown(t.at(b)) + " for sample " + std::to_string(b));
    }
  }

 private:
  // Finite and, unless `any_sign`, not negative.
  Coefficient checked(const char* name, const Coefficient& value, bool any_sign) {
    if (value.data == nullptr) return value;
    const int64_t count = value.stride == 0 ? (shape_.b > 0 ? 1 : 0) : shape_.b;
    for (int64_t b = 0; b < count; ++b) {
      const double x = value.at(b);
      if (std::isfinite(x) && (any_sign || x >= 0.0)) continue;
      throw py::value_error(op() + ": expected " + name + " as finite numbers" + (any_sign ? "" : " of at least 0") +
                            ", got " + shown(x) + " for sample " + std::to_string(b));
    }
    return value;
  }
};

std::string of_images(const std::string& op, const Shape& shape) {
  std::string sizes;
  for (int64_t size : {shape.b, shape.c, shape.h, shape.w}) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  return op + " of images [" + sizes + "]: ";
}

template <class Args>
void launch(const std::string& op, const Args& args, int threads) {
  try {
    const py::gil_scoped_release unlocked;
    run(args, threads);
  } catch (const std::invalid_argument& error) {
    throw py::value_error(of_images(op, args.shape) + error.what());
  } catch (const OutOfMemory& error) {
    throw OutOfMemory(of_images(op, args.shape) + error.what() +
                      "; smaller images, or fewer threads (torch.set_num_threads), need less");
  }
}

// Runs, and writes the loss of each image to `out`.
template <class Args>
void launch_loss(const std::string& op, Args& a, float* out, int threads) {
  std::vector<double> planes(static_cast<size_t>(a.shape.b * a.shape.c));
  a.plane_loss = planes.data();
  launch(op, a, threads);
  for (int64_t b = 0; b < a.shape.b; ++b) {
    double sum = 0.0;
    for (int64_t c = 0; c < a.shape.c; ++c) sum += planes[static_cast<size_t>(b * a.shape.c + c)];
    out[b] = static_cast<float>(sum);
  }
}

// A loss has one field more: the address of each image's loss (float32, [B]).
template <class Args>
void run_call(const char* op, int threads, const py::tuple& fields) {
  CheckedCall call(op, fields);
  Args args = Args::read(call);
  if constexpr (std::is_base_of_v<LossArgs, Args>) {
    launch_loss(call.op(), args, static_cast<float*>(address(call.next())), threads);
  } else {
    launch(call.op(), args, threads);
  }
}

void step(int threads, const py::tuple& fields) {
  CheckedCall call("step", fields);
  const CorruptArgs args = CorruptArgs::read_step(call);
  launch(call.op(), args, threads);
}

void normal(int threads, const py::tuple& fields) {
  CheckedCall call("normal", fields);
  const NormalArgs args = NormalArgs::read(call);
  const py::gil_scoped_release unlocked;
  run(args, threads);
}

void set_limit(int64_t bytes) {
  if (bytes < 0) throw py::value_error("expected a cache limit of at least 0 bytes, got " + std::to_string(bytes));
  set_cache_limit(bytes);
}

}  // namespace
}  // namespace softdiff

PYBIND11_MODULE(_native, m) {
  using namespace softdiff;
  m.doc() = "softdiff_kernels: fused CPU kernels, free of torch.";
#define SOFTDIFF_BIND(name, Args) \
  m.def(#name, [](int threads, const py::tuple& fields) { run_call<Args>(#name, threads, fields); });
  SOFTDIFF_KERNELS(SOFTDIFF_BIND)
#undef SOFTDIFF_BIND
  m.def("step", &step);
  m.def("normal", &normal);
  m.def("instruction_set", &instruction_set);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("thread_source", &thread_source);
  m.def("cache_bytes", &cache_bytes);
  m.def("cache_limit", &cache_limit);
  m.def("set_cache_limit", &set_limit);
  m.def("clear_cache", &clear_cache);
  // What these two look up once is there before any thread can fork.
  instruction_set(), thread_source();
}
