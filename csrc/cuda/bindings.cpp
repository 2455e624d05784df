// SPDX-License-Identifier: Apache-2.0
// The module softdiff_kernels._cuda. Importing it calls nothing of CUDA's. Every op is a function of ((place, plan), a
// tuple of what its `read` in args.h takes). Coefficients have been checked where they lie in host memory; on the device
// nobody looks at them, since that would wait for it.
#include "../parse.h"
#include "cuda_ops.h"
#include "device.h"
#include "launch.h"

#include <pybind11/stl.h>

#include <string>
#include <type_traits>
#include <utility>

namespace softdiff::cuda {
namespace {

// (device, stream, table along H, table along W, scratch, parts of a loss).
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

py::tuple plan(const std::string& op, const py::tuple& sizes, int64_t inputs, int device) {
  const Shape s = shape(sizes);
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check("plan", s, cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  Machine machine;
  machine.l2_bytes = ask(cudaDevAttrL2CacheSize), machine.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  const Plan p = plan_of(kind_of(op), s, inputs, machine);
  return py::make_tuple(static_cast<int>(p.engine), p.side_h, p.side_w, p.chunk, p.scratch, p.parts);
}

// Where every op but `normal` runs: (place, plan).
std::pair<Place, Plan> where_of(const py::tuple& where) {
  expect(where, 2, "where");
  return {place_of(where[0]), plan_from(where[1])};
}

// A loss leaves that of each image at the last field's address (float32, [B]).
template <class Args>
void run_call(const char* op, const py::tuple& where, const py::tuple& fields) {
  auto [place, plan] = where_of(where);
  Call call(op, fields);
  const Args args = Args::read(call);
  if constexpr (std::is_same_v<Args, SoftScoreLossArgs> || std::is_same_v<Args, SpectralLossArgs>) {
    place.loss = static_cast<float*>(address(call.next()));
  }
  run(call.op().c_str(), args, place, plan);
}

void step(const py::tuple& where, const py::tuple& fields) {
  const auto [place, plan] = where_of(where);
  Call call("step", fields);
  const CorruptArgs args = CorruptArgs::read_step(call);
  run(call.op().c_str(), args, place, plan);
}

void normal(const py::tuple& where, const py::tuple& fields) {
  Call call("normal", fields);
  run(NormalArgs::read(call), place_of(where));
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
  using namespace softdiff;
  using namespace softdiff::cuda;
  m.doc() = "softdiff_kernels: fused CUDA kernels, free of torch.";
  m.def("plan", &plan);
#define SOFTDIFF_BIND(name, Args) m.def(#name, [](const py::tuple& where, const py::tuple& fields) { run_call<Args>(#name, where, fields); });
  SOFTDIFF_KERNELS(SOFTDIFF_BIND)
#undef SOFTDIFF_BIND
  m.def("step", &step);
  m.def("normal", &normal);
  m.def("architectures", [] { return pybind11::tuple(pybind11::cast(architectures())); });
  m.def("ptx_architecture", &ptx_architecture);
  m.def("runtime_version", &runtime_version);
  m.def("driver_version", &driver_version);
  m.def("devices", &devices);
  m.def("emulated", &emulated);
}
