// SPDX-License-Identifier: Apache-2.0
// Python's tuples as args.h's structs, for both modules.
//
// An image comes as a tuple (address, dtype code, stride, stride, stride, stride), or None; a coefficient
// as a float, (address, dtype code, stride), or None; a key as (seed, stream, draw), (address, rows), or None.
#pragma once

#include "args.h"

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

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

inline Rule rule(const std::string& name) {
  if (name == "given") return Rule::given;
  if (name == "large") return Rule::large;
  if (name == "small") return Rule::small;
  throw py::value_error("expected rule as given, large or small, got " + name);
}

// The arguments of a call from Python, which the structs of args.h `read` one after the other.
class Call {
 public:
  Call(const char* op, const py::tuple& fields) : op_(op), fields_(fields) {}

  // The op as error messages name it.
  const std::string& op() const { return op_; }
  void name(const std::string& op) { op_ = op; }

  py::object next() {
    if (at_ >= fields_.size()) throw py::value_error(op_ + ": too few arguments");
    return fields_[at_++];
  }
  std::string text() { return next().cast<std::string>(); }
  int64_t size() { return integer(next()); }
  double number() { return next().cast<double>(); }
  bool flag() { return next().cast<bool>(); }
  Shape shape() { return shape_ = softdiff::shape(next()); }
  Image image() { return softdiff::image(next()); }
  Key key() { return softdiff::key(next()); }
  Rule rule() { return softdiff::rule(text()); }

  // Coefficients, finite and not negative, but for the signed ones. Who can look at their values checks them here.
  Coefficient coefficient(const char*, double absent = 1.0) { return softdiff::coefficient(next(), absent); }
  Coefficient signed_coefficient(const char*) { return softdiff::coefficient(next()); }
  void ordered(const char*, const Coefficient&, const char*, const Coefficient&) {}

  // As many images each time; they live as long as the call.
  const Image* images(int64_t& count) {
    std::vector<Image> list;
    for (const auto& item : py::cast<py::tuple>(next())) list.push_back(softdiff::image(py::reinterpret_borrow<py::object>(item)));
    count = static_cast<int64_t>(list.size());
    if (!lists_.empty() && lists_.front().size() != list.size()) throw py::value_error(op_ + ": as many masks as inputs");
    lists_.push_back(std::move(list));
    return lists_.back().data();
  }

 protected:
  Shape shape_;

 private:
  std::string op_;
  const py::tuple& fields_;
  size_t at_ = 0;
  std::vector<std::vector<Image>> lists_;
};

}  // namespace softdiff
