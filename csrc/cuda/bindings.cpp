// SPDX-License-Identifier: Apache-2.0
// The module softdiff_kernels._cuda. Importing it calls nothing of CUDA's. Coefficients have been checked where
// they lie in host memory; on the device nobody looks at them, since that would wait for it.
#include "../parse.h"
#include "cuda_ops.h"
#include "device.h"
#include "launch.h"

#include <pybind11/stl.h>

#include <vector>

namespace softdiff::cuda {
namespace {

// (device, stream, table along H, table along W, scratch, parts).
Place place_of(const py::tuple& fields) {
  expect(fields, 6, "place");
  Place place;
  place.device = static_cast<int>(integer(fields[0]));
  place.stream = address(fields[1]);
  place.table_h = address(fields[2]), place.table_w = address(fields[3]);
  place.scratch = static_cast<float*>(address(fields[4]));
  place.parts = static_cast<double*>(address(fields[5]));
  return place;
}

// (engine, side_h, side_w, chunk, scratch, parts), as `plan` gave them.
Plan plan_from(const py::tuple& fields) {
  expect(fields, 6, "plan");
  Plan plan;
  plan.engine = static_cast<Engine>(integer(fields[0]));
  plan.side_h = static_cast<int>(integer(fields[1])), plan.side_w = static_cast<int>(integer(fields[2]));
  plan.chunk = integer(fields[3]), plan.scratch = integer(fields[4]), plan.parts = integer(fields[5]);
  return plan;
}

// `clusters`: whether to take them where the device has them.
py::tuple plan(int kind, const py::tuple& sizes, int64_t inputs, int device, bool clusters) {
  const Shape s = shape(sizes);
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check("plan", s, cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  Machine machine;
  machine.l2_bytes = ask(cudaDevAttrL2CacheSize), machine.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  machine.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  // A GPU may run code that was compiled for an older one without clusters.
  machine.clusters = clusters && ptx_architecture() >= 90 && ask(cudaDevAttrClusterLaunch) != 0;
  const Plan p = plan_of(static_cast<Kind>(kind), s, inputs, machine);
  return py::make_tuple(static_cast<int>(p.engine), p.side_h, p.side_w, p.chunk, p.scratch, p.parts);
}

void corrupt(const char* op, const py::tuple& where, const py::tuple& planned, const py::tuple& sizes,
             const py::object& x0, const py::object& blur_std, const py::object& noise_std, const py::object& scale,
             double floor, const py::object& noise_key, const py::object& noise, const py::object& out,
             const py::object& residual) {
  FilterArgs a;
  a.shape = shape(sizes);
  a.source = image(x0), a.noise = image(noise), a.out = image(out), a.residual = image(residual);
  a.blur_std_s = coefficient(blur_std), a.noise_std = coefficient(noise_std, 0.0), a.scale = coefficient(scale);
  a.floor = floor;
  a.key = key(noise_key);
  run(op, a, place_of(where), plan_from(planned));
}

// rule 0: first and second are keep and inject; 1, 2: noise_std_t and noise_std_s, large or small variance.
void step(int rule, const py::tuple& where, const py::tuple& planned, const py::tuple& sizes, const py::object& x_t,
          const py::object& x0_hat, const py::object& blur_std_t, const py::object& blur_std_s, const py::object& first,
          const py::object& second, double floor, const py::object& noise_key, const py::object& noise,
          const py::object& out) {
  FilterArgs a;
  a.shape = shape(sizes);
  a.reverse = true;
  a.add = image(x_t), a.source = image(x0_hat), a.noise = image(noise), a.out = image(out);
  a.blur_std_t = coefficient(blur_std_t), a.blur_std_s = coefficient(blur_std_s);
  a.momentum = rule != 0, a.small_variance = rule == 2;
  (a.momentum ? a.noise_std_t : a.keep) = coefficient(first);
  (a.momentum ? a.noise_std_s : a.noise_std) = coefficient(second);
  a.floor = floor;
  a.key = key(noise_key);
  run(rule == 0 ? "reverse_step" : "momentum_step", a, place_of(where), plan_from(planned));
}

void soft_score_loss(const py::tuple& where, const py::tuple& planned, const py::tuple& sizes,
                     const py::object& prediction, const py::object& target, const py::object& blur_std,
                     const py::object& weight, double floor, double gradient_scale, const py::object& loss,
                     const py::object& gradient) {
  LossArgs a;
  a.shape = shape(sizes);
  a.prediction = image(prediction), a.target = image(target), a.gradient = image(gradient);
  a.blur_std = coefficient(blur_std), a.weight = coefficient(weight);
  a.floor = floor, a.gradient_scale = gradient_scale;
  run(a, place_of(where), plan_from(planned), static_cast<float*>(address(loss)));
}

void transform(const py::tuple& where, const py::tuple& planned, const py::tuple& sizes, const py::object& in,
               const py::object& out, bool inverse) {
  TransformArgs a;
  a.shape = shape(sizes);
  a.in = image(in), a.out = image(out);
  a.inverse = inverse;
  run(a, place_of(where), plan_from(planned));
}

void spectral_mix(const py::tuple& where, const py::tuple& planned, const py::tuple& sizes, const py::tuple& inputs,
                  const py::tuple& masks, const py::object& noise_mask, const py::object& noise_key,
                  const py::object& out) {
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
  run(a, place_of(where), plan_from(planned));
}

void normal(const py::tuple& where, int64_t batch, int64_t count, const py::object& noise_key, const py::object& out) {
  NormalArgs a;
  a.b = batch, a.count = count;
  a.key = key(noise_key);
  a.out = image(out);
  run(a, place_of(where));
}

bool emulated() {
#ifdef SOFTDIFF_CUDA_SHIM
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace softdiff::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace softdiff::cuda;
  m.doc() = "softdiff_kernels: fused CUDA kernels, free of torch.";
  m.def("plan", &plan);
  m.def("corrupt", &corrupt);
  m.def("step", &step);
  m.def("soft_score_loss", &soft_score_loss);
  m.def("transform", &transform);
  m.def("spectral_mix", &spectral_mix);
  m.def("normal", &normal);
  m.def("architectures", [] { return pybind11::tuple(pybind11::cast(architectures())); });
  m.def("ptx_architecture", &ptx_architecture);
  m.def("runtime_version", &runtime_version);
  m.def("driver_version", &driver_version);
  m.def("devices", &devices);
  m.def("emulated", &emulated);
}
