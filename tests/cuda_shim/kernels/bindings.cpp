// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "kernels.h"

PYBIND11_MODULE(shim_kernels, m) {
  m.def("mma", &mma);
  m.def("ldmatrix", &ldmatrix);
  m.def("movmatrix", &movmatrix);
  m.def("shuffles", &shuffles);
  m.def("votes", &votes);
}
