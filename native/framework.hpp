// Another framework's tensors, asked what they are, without its headers: through the exchange interface of DLPack, which torch speaks since
// 2.10.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "table.hpp"

namespace openadam {

// What DLPack calls a DLTensor, and the table of functions behind a type's __dlpack_c_exchange_api__ (DLPack 1.3).
struct ForeignTensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t dimensions;
  std::uint8_t dtype_code;
  std::uint8_t dtype_bits;
  std::uint16_t dtype_lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset;
};

// A tensor that was asked, and what its storage holds from its first element on, in bytes.
struct Viewed : ForeignTensor {
  std::int64_t room = std::numeric_limits<std::int64_t>::max();
};

struct Exchange {
  std::uint32_t major;
  std::uint32_t minor;
  void* older;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*view)(void* object, ForeignTensor* out);  // borrows; null where the framework does not offer it
  void* stream;
};

inline std::int64_t address_of(const ForeignTensor& tensor) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset);
}

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kInteger = 0;
constexpr std::uint8_t kFloating = 2;

// How a tensor object lies in memory, found out at run time by who makes a Framework: offset of the description in the object; offset in
// the description of its flags and the marks among them of a view that shows other numbers than its memory holds (negated, conjugate);
// offset of the storage in the description; offsets in the storage of the memory's address and of its size in bytes.
struct Anatomy {
  std::int64_t description;
  std::int64_t flags;
  std::int64_t marks;
  std::int64_t storage;
  std::int64_t memory;
  std::int64_t size;
  std::int64_t shared;       // where a storage says that it is copied once somebody writes,
  std::int64_t shared_mark;  // and how
  std::int64_t version;      // where the counter of what was written to a tensor holds its number; 0: that is not known
};

// A framework whose tensors can be read: how, and which types are nothing but memory.
//
// The exchange interface is the authority on what a tensor is. It is asked through several layers, though, so where the anatomy is known, a
// tensor whose description has not changed in any byte, and which the interface has been asked about, is not asked about again.
class Framework {
 public:
  Framework(nanobind::object capsule, std::vector<nanobind::object> types, const std::vector<std::int64_t>& anatomy)
      : capsule_(std::move(capsule)), types_(std::move(types)) {
    exchange_ = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule_.ptr(), "dlpack_exchange_api"));
    if (!exchange_) throw nanobind::python_error();
    if (exchange_->major != 1 || !exchange_->view) throw std::invalid_argument("the framework does not speak this exchange interface");
    if (anatomy.empty()) return;
    if (anatomy.size() != 9 || anatomy[1] < kCounted || anatomy[1] > 8 * 255 || anatomy[1] % 8)
      throw std::invalid_argument("that is no anatomy of a tensor");
    anatomy_ = Anatomy{anatomy[0], anatomy[1], anatomy[2], anatomy[3], anatomy[4], anatomy[5], anatomy[6], anatomy[7], anatomy[8]};
  }

  void add_type(nanobind::object type) { types_.push_back(std::move(type)); }

  // The length of a tensor's description, as far as it is read.
  std::int64_t length_of_description() const { return anatomy_ ? anatomy_->flags + 8 : 0; }

  // Whether it is known how often operations of the framework have written to a tensor.
  bool counts_versions() const { return anatomy_ && anatomy_->version; }

  // How often, of a tensor that was recognised.
  std::uint64_t version_of(const Traces::Tensor& known) const { return word<std::uint32_t>(known.version + anatomy_->version); }

  bool is_known(PyObject* object) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    return std::any_of(types_.begin(), types_.end(), [type](const nanobind::object& known) { return known.ptr() == type; });
  }

  // Fills in the tensor behind an object that is plain memory; false where it is not.
  bool view(PyObject* object, Viewed* tensor) const { return view(object, tensor, nullptr); }

  // The same, of an object that a trace holds; keeps what was found, and where that led.
  bool view(Traces::Tensor* known, Viewed* tensor) const { return view(known->object, tensor, known); }

  // The same where nothing need be asked, because the description is byte for byte as it was. Reads memory only, so that several threads
  // can do it while one holds the interpreter's lock.
  bool recognise(const Traces::Tensor& known, Viewed* tensor) const noexcept {
    Parts parts;
    if (!anatomy_ || !take_apart(known.object, &parts) || known.digest != digest_of(parts.description)) return false;
    tensor->data = reinterpret_cast<void*>(static_cast<std::uintptr_t>(parts.memory + known.offset));
    tensor->device_type = kCpu;
    tensor->device_id = 0;
    tensor->dimensions = known.dimensions;
    tensor->dtype_code = known.dtype_code;
    tensor->dtype_bits = known.dtype_bits;
    tensor->dtype_lanes = 1;
    tensor->shape = reinterpret_cast<const std::int64_t*>(parts.description) + known.sizes;
    tensor->strides = reinterpret_cast<const std::int64_t*>(parts.description) + known.strides;
    tensor->byte_offset = 0;
    tensor->room = parts.end - address_of(*tensor);
    return true;
  }

 private:
  static constexpr std::int64_t kCounted = 16;  // a description begins with its type and the number of its users, which do not matter

  template <class T>
  static T word(const char* address) {
    T value;
    std::memcpy(&value, address, sizeof(value));
    return value;
  }

  // What an object is made of, and from where to where its storage's memory goes.
  struct Parts {
    const char* description;
    const char* storage;
    std::int64_t memory;
    std::int64_t end;
  };

  // False of a view that shows other numbers than the memory holds, and of memory that is copied once somebody writes.
  bool take_apart(PyObject* object, Parts* parts) const noexcept {
    parts->description = word<const char*>(reinterpret_cast<const char*>(object) + anatomy_->description);
    if (word<std::int64_t>(parts->description + anatomy_->flags) & anatomy_->marks) return false;
    parts->storage = word<const char*>(parts->description + anatomy_->storage);
    if (!parts->storage || word<std::int64_t>(parts->storage + anatomy_->shared) == anatomy_->shared_mark) return false;
    parts->memory = word<std::int64_t>(parts->storage + anatomy_->memory);
    parts->end = parts->memory + word<std::int64_t>(parts->storage + anatomy_->size);
    return true;
  }

  bool view(PyObject* object, Viewed* tensor, Traces::Tensor* known) const {
    if (!is_known(object)) return false;
    if (!anatomy_) return ask(object, tensor) && !negated(object);
    Parts parts;
    if (!take_apart(object, &parts) || !ask(object, tensor)) return false;
    tensor->room = parts.end - address_of(*tensor);
    if (known) learn(known, *tensor, parts);
    return true;
  }

  bool ask(PyObject* object, ForeignTensor* tensor) const {
    if (exchange_->view(object, tensor) == 0) return true;
    PyErr_Clear();
    return false;
  }

  // Of everything from the counts to the flags: storage, shape, strides, offset, dtype, device. Never 0.
  std::uint64_t digest_of(const char* description) const noexcept {
    // Four chains, so that the processor need not wait for one product before it begins the next.
    std::uint64_t a = 14695981039346656037u, b = 1099511628211u, c = 6364136223846793005u, d = 1442695040888963407u;
    const auto mix = [description](std::uint64_t lane, std::int64_t at) {
      lane = (lane ^ word<std::uint64_t>(description + at)) * 0x9E3779B97F4A7C15u;
      return lane ^ (lane >> 29);
    };
    std::int64_t at = kCounted;
    for (; at + 24 <= anatomy_->flags; at += 32) {
      a = mix(a, at);
      b = mix(b, at + 8);
      c = mix(c, at + 16);
      d = mix(d, at + 24);
    }
    for (; at <= anatomy_->flags; at += 8) a = mix(a, at);
    std::uint64_t digest = 0;
    for (const std::uint64_t lane : {a, b, c, d}) digest = (digest ^ lane) * 0xD6E8FEB86659FD93u;
    return digest | 1;
  }

  // What was found, for as long as the digest stays; only if shape and strides are among the bytes that it is made from.
  void learn(Traces::Tensor* known, const ForeignTensor& tensor, const Parts& parts) const {
    const auto sizes = reinterpret_cast<const char*>(tensor.shape) - parts.description;
    const auto strides = reinterpret_cast<const char*>(tensor.strides) - parts.description;
    const std::int64_t length = 8 * static_cast<std::int64_t>(tensor.dimensions);
    const bool within = sizes >= kCounted && strides >= kCounted && sizes + length <= anatomy_->flags && strides + length <= anatomy_->flags &&
                        sizes % 8 == 0 && strides % 8 == 0 && tensor.device_type == kCpu && tensor.dtype_lanes == 1;
    known->digest = within ? digest_of(parts.description) : 0;
    known->offset = address_of(tensor) - parts.memory;
    known->dimensions = tensor.dimensions;
    known->dtype_code = tensor.dtype_code;
    known->dtype_bits = tensor.dtype_bits;
    known->sizes = static_cast<std::uint8_t>(sizes / 8);
    known->strides = static_cast<std::uint8_t>(strides / 8);
    known->description = parts.description;
    known->storage = parts.storage;
    known->gradient = word<const char*>(parts.description + anatomy_->storage + 8);
    known->version = word<const char*>(parts.description + anatomy_->storage + 24);
  }

  static bool negated(PyObject* object) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    const nanobind::object answer = nanobind::steal(PyObject_CallMethodNoArgs(object, is_neg));
    if (!answer.is_valid()) throw nanobind::python_error();
    return answer.ptr() != Py_False;
  }

  nanobind::object capsule_;
  const Exchange* exchange_;
  std::vector<nanobind::object> types_;
  std::optional<Anatomy> anatomy_;
};

}  // namespace openadam
