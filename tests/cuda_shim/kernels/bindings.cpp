// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "kernels.h"

PYBIND11_MODULE(shim_kernels, m) {
  m.def("shuffle", &shuffle);
  m.def("votes", &votes);
  m.def("mistake", &mistake);
  m.def("neighbour", &neighbour);
  m.def("rounds", &rounds);
  m.def("offsets", &offsets);
  m.def("to_half", &to_half);
  m.def("from_half", &from_half);
  m.def("bits", &bits);
  m.def("functions", &functions);
  m.def("visit", &visit);
  m.def("many", &many);
  m.def("empty", &empty);
  m.def("never_allowed", &never_allowed);
  m.def("attribute", &attribute);
}
