// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "kernels.h"

PYBIND11_MODULE(shim_kernels, m) {
  m.def("mma", &mma);
  m.def("ldmatrix", &ldmatrix);
  m.def("movmatrix", &movmatrix);
  m.def("shuffles", &shuffles);
  m.def("votes", &votes);
  m.def("mistake", &mistake);
  m.def("neighbour", &neighbour);
  m.def("rounds", &rounds);
  m.def("warp_rows", &warp_rows);
  m.def("copies", &copies);
  m.def("offsets", &offsets);
  m.def("exchange", &exchange);
  m.def("cluster_halves", &cluster_halves);
  m.def("cluster_mistake", &cluster_mistake);
  m.def("empty_clusters", &empty_clusters);
  m.def("to_half", &to_half);
  m.def("from_half", &from_half);
  m.def("bits", &bits);
  m.def("functions", &functions);
  m.def("visit", &visit);
  m.def("atomics", &atomics);
  m.def("many", &many);
  m.def("empty", &empty);
  m.def("never_allowed", &never_allowed);
  m.def("attribute", &attribute);
  m.def("occupancy", &occupancy);
}
