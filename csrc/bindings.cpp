// SPDX-License-Identifier: Apache-2.0
// The pybind11 module: checks, then launches. It knows addresses, sizes and strides, and no torch.
#include "cpu/driver.h"
#include "cpu/plan_cache.h"
#include "parse.h"

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace softdiff {
namespace {

std::string shown(double value) { return py::repr(py::float_(value)).cast<std::string>(); }

// Every sample's value is finite and, unless `any_sign`, not negative.
void check(const char* op, const char* name, const Coefficient& value, int64_t batch, bool any_sign = false) {
  if (value.data == nullptr) return;
  const int64_t count = value.stride == 0 ? (batch > 0 ? 1 : 0) : batch;
  for (int64_t b = 0; b < count; ++b) {
    const double x = value.at(b);
    if (std::isfinite(x) && (any_sign || x >= 0.0)) continue;
    throw py::value_error(std::string(op) + ": expected " + name + " as finite numbers" +
                          (any_sign ? "" : " of at least 0") + ", got " + shown(x) + " for sample " + std::to_string(b));
  }
}

void check_order(const char* op, const char* low, const Coefficient& s, const char* high, const Coefficient& t,
                 int64_t batch) {
  for (int64_t b = 0; b < batch; ++b) {
    if (s.at(b) <= t.at(b)) continue;
    throw py::value_error(std::string(op) + ": expected " + low + " <= " + high +
                          " (a step towards the clean image), got " + shown(s.at(b)) + " > " + shown(t.at(b)) +
                          " for sample " + std::to_string(b));
  }
}

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

// blur and corrupt.
void corrupt(const std::string& op, const py::tuple& sizes, const py::object& x0, const py::object& blur_std,
             const py::object& noise_std, const py::object& scale, double floor, const py::object& noise_key,
             const py::object& noise, const py::object& out, const py::object& residual, int threads) {
  FilterArgs a;
  a.shape = shape(sizes);
  a.source = image(x0), a.noise = image(noise), a.out = image(out), a.residual = image(residual);
  a.blur_std_s = coefficient(blur_std), a.noise_std = coefficient(noise_std, 0.0), a.scale = coefficient(scale);
  a.floor = floor;
  a.key = key(noise_key);
  check(op.c_str(), "blur_std", a.blur_std_s, a.shape.b);
  check(op.c_str(), "noise_std", a.noise_std, a.shape.b);
  check(op.c_str(), "scale", a.scale, a.shape.b, true);
  launch(op, a, threads);
}

FilterArgs reverse_args(const py::tuple& sizes, const py::object& x_t, const py::object& x0_hat,
                        const py::object& blur_std_t, const py::object& blur_std_s, double floor,
                        const py::object& noise_key, const py::object& noise, const py::object& out) {
  FilterArgs a;
  a.shape = shape(sizes);
  a.reverse = true;
  a.add = image(x_t), a.source = image(x0_hat), a.noise = image(noise), a.out = image(out);
  a.blur_std_t = coefficient(blur_std_t), a.blur_std_s = coefficient(blur_std_s);
  a.floor = floor;
  a.key = key(noise_key);
  return a;
}

void reverse_step(const py::tuple& sizes, const py::object& x_t, const py::object& x0_hat, const py::object& blur_std_t,
                  const py::object& blur_std_s, const py::object& keep, const py::object& inject, double floor,
                  const py::object& noise_key, const py::object& noise, const py::object& out, int threads) {
  FilterArgs a = reverse_args(sizes, x_t, x0_hat, blur_std_t, blur_std_s, floor, noise_key, noise, out);
  a.keep = coefficient(keep), a.noise_std = coefficient(inject);
  const char* op = "reverse_step";
  check(op, "blur_std_t", a.blur_std_t, a.shape.b);
  check(op, "blur_std_s", a.blur_std_s, a.shape.b);
  check(op, "a", a.keep, a.shape.b, true);
  check(op, "b", a.noise_std, a.shape.b);
  launch(op, a, threads);
}

void momentum_step(const py::tuple& sizes, const py::object& x_t, const py::object& x0_hat,
                   const py::object& blur_std_t, const py::object& blur_std_s, const py::object& noise_std_t,
                   const py::object& noise_std_s, bool small_variance, const py::object& noise_key,
                   const py::object& noise, const py::object& out, int threads) {
  FilterArgs a = reverse_args(sizes, x_t, x0_hat, blur_std_t, blur_std_s, 0.0, noise_key, noise, out);
  a.momentum = true;
  a.small_variance = small_variance;
  a.noise_std_t = coefficient(noise_std_t), a.noise_std_s = coefficient(noise_std_s);
  const char* op = "momentum_step";
  check(op, "blur_std_t", a.blur_std_t, a.shape.b);
  check(op, "blur_std_s", a.blur_std_s, a.shape.b);
  check(op, "noise_std_t", a.noise_std_t, a.shape.b);
  check(op, "noise_std_s", a.noise_std_s, a.shape.b);
  check_order(op, "blur_std_s", a.blur_std_s, "blur_std_t", a.blur_std_t, a.shape.b);
  check_order(op, "noise_std_s", a.noise_std_s, "noise_std_t", a.noise_std_t, a.shape.b);
  launch(op, a, threads);
}

// Writes the loss of each image to `loss` (float32, [B]).
void soft_score_loss(const py::tuple& sizes, const py::object& prediction, const py::object& target,
                     const py::object& blur_std, const py::object& weight, double floor, double gradient_scale,
                     const py::object& loss, const py::object& gradient, int threads) {
  LossArgs a;
  a.shape = shape(sizes);
  a.prediction = image(prediction), a.target = image(target), a.gradient = image(gradient);
  a.blur_std = coefficient(blur_std), a.weight = coefficient(weight);
  a.floor = floor;
  a.gradient_scale = gradient_scale;
  check("soft_score_loss", "blur_std", a.blur_std, a.shape.b);
  check("soft_score_loss", "weight", a.weight, a.shape.b);
  std::vector<double> planes(static_cast<size_t>(a.shape.b * a.shape.c));
  a.plane_loss = planes.data();
  launch("soft_score_loss", a, threads);
  auto* out = static_cast<float*>(address(loss));
  for (int64_t b = 0; b < a.shape.b; ++b) {
    double sum = 0.0;
    for (int64_t c = 0; c < a.shape.c; ++c) sum += planes[static_cast<size_t>(b * a.shape.c + c)];
    out[b] = static_cast<float>(sum);
  }
}

void transform(const py::tuple& sizes, const py::object& in, const py::object& out, bool inverse, int threads) {
  TransformArgs a;
  a.shape = shape(sizes);
  a.in = image(in), a.out = image(out);
  a.inverse = inverse;
  launch(inverse ? "idct2" : "dct2", a, threads);
}

void spectral_mix(const py::tuple& sizes, const py::tuple& inputs, const py::tuple& masks, const py::object& noise_mask,
                  const py::object& noise_key, const py::object& out, int threads) {
  std::vector<Image> in, mask;
  for (const auto& item : inputs) in.push_back(image(py::reinterpret_borrow<py::object>(item)));
  for (const auto& item : masks) mask.push_back(image(py::reinterpret_borrow<py::object>(item)));
  if (in.size() != mask.size()) throw py::value_error("spectral_mix: as many masks as inputs");
  MixArgs a;
  a.shape = shape(sizes);
  a.count = static_cast<int64_t>(in.size());
  a.in = in.data(), a.mask = mask.data();
  a.noise_mask = image(noise_mask), a.out = image(out);
  a.key = key(noise_key);
  launch("spectral_mix", a, threads);
}

void normal(int64_t batch, int64_t count, const py::object& noise_key, const py::object& out, int threads) {
  NormalArgs a;
  a.b = batch, a.count = count;
  a.key = key(noise_key);
  a.out = image(out);
  const py::gil_scoped_release unlocked;
  run(a, threads);
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
  m.def("corrupt", &corrupt);
  m.def("reverse_step", &reverse_step);
  m.def("momentum_step", &momentum_step);
  m.def("soft_score_loss", &soft_score_loss);
  m.def("transform", &transform);
  m.def("spectral_mix", &spectral_mix);
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
