// SPDX-License-Identifier: Apache-2.0
// Python's tuples as args.h's structs, for both modules.
//
// An image comes as a tuple (address, dtype code, stride, stride, stride, stride), or None; a coefficient
// as a float, (address, dtype code, stride), or None; a key as (seed, stream, draw), (address, rows), or None.
#pragma once

#include "args.h"

#include <pybind11/pybind11.h>

#include <string>

namespace softdiff {

namespace py = pybind11;

inline int64_t integer(const py::handle& value) {
  const int64_t out = PyLong_AsLongLong(value.ptr());
  if (out == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return out;
}

inline void* address(const py::handle& value) {
  void* out = PyLong_AsVoidPtr(value.ptr());
  if (out == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return out;
}

inline void expect(const py::tuple& tuple, size_t size, const char* what) {
  if (tuple.size() != size) throw py::value_error(std::string(what) + ": wrong number of fields");
}

inline DType dtype_of(const py::handle& code) {
  const int64_t value = integer(code);
  if (value < 0 || value > 4) throw py::value_error("unknown dtype code " + std::to_string(value));
  return static_cast<DType>(value);
}

inline Image image(const py::object& object) {
  Image out;
  if (object.is_none()) return out;
  const auto fields = py::cast<py::tuple>(object);
  expect(fields, 6, "image");
  out.data = address(fields[0]);
  out.dtype = dtype_of(fields[1]);
  for (int i = 0; i < 4; ++i) out.stride[i] = integer(fields[2 + i]);
  return out;
}

inline Coefficient coefficient(const py::object& object, double absent = 1.0) {
  Coefficient out;
  out.number = absent;
  if (object.is_none()) return out;
  if (PyFloat_Check(object.ptr())) {
    out.number = PyFloat_AS_DOUBLE(object.ptr());
    return out;
  }
  const auto fields = py::cast<py::tuple>(object);
  expect(fields, 3, "coefficient");
  out.data = address(fields[0]);
  out.dtype = dtype_of(fields[1]);
  out.stride = integer(fields[2]);
  return out;
}

inline Shape shape(const py::tuple& sizes) {
  expect(sizes, 4, "shape");
  return {integer(sizes[0]), integer(sizes[1]), integer(sizes[2]), integer(sizes[3])};
}

inline Key key(const py::object& object) {
  Key out;
  if (object.is_none()) return out;
  const auto fields = py::cast<py::tuple>(object);
  out.present = true;
  if (fields.size() == 2) {
    out.rows = static_cast<const int64_t*>(address(fields[0]));
    out.count = integer(fields[1]);
  } else {
    expect(fields, 3, "key");
    out.seed = integer(fields[0]), out.stream = integer(fields[1]), out.draw = integer(fields[2]);
  }
  return out;
}

}  // namespace softdiff
