// SPDX-License-Identifier: Apache-2.0
// The module softdiff_kernels._cuda. Importing it calls nothing of CUDA's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, module) {
    using namespace softdiff::cuda;
    module.def("architectures", [] { return py::tuple(py::cast(architectures())); });
    module.def("ptx_architecture", &ptx_architecture);
    module.def("runtime_version", &runtime_version);
    module.def("driver_version", &driver_version);
    module.def("devices", &devices);
    module.def("emulated", [] { return false; });
}
