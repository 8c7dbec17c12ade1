// The Python module: arrays come over DLPack or the buffer protocol, so that no framework is linked to.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffers.h"
#include "kernel.h"
#include "threads.h"

namespace nb = nanobind;
using namespace labelsmooth;

namespace {

using Array = nb::ndarray<nb::device::cpu, nb::ro>;
using Writable = nb::ndarray<nb::device::cpu>;

const std::vector<Kernels>& kernels() {
    static const std::vector<Kernels> all = runnable();
    return all;
}

const Kernels& kernels_named(const std::optional<std::string>& name) {
    if (!name) return kernels().front();
    for (const Kernels& some : kernels())
        if (*name == some.name) return some;
    throw std::invalid_argument("no kernels named " + *name + " run on this machine");
}

[[noreturn]] void refuse(const char* name, const char* rule) {
    throw std::invalid_argument(std::string(name) + " must " + rule);
}

void require(bool condition, const char* name, const char* rule) {
    if (!condition) refuse(name, rule);
}

template <class A>
Type type_of(const A& array, const char* name) {
    const auto dtype = array.dtype();
    const bool plain = dtype.lanes == 1;
    const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
    if (plain && code == nb::dlpack::dtype_code::Float) {
        if (dtype.bits == 32) return Type::float32;
        if (dtype.bits == 64) return Type::float64;
        if (dtype.bits == 16) return Type::float16;
    }
    if (plain && code == nb::dlpack::dtype_code::Bfloat) return Type::bfloat16;
    refuse(name, "be float32, float64, bfloat16 or float16");
}

template <class A>
bool is_contiguous(const A& array) {
    if (array.size() == 0) return true;
    int64_t expected = 1;
    for (size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) != 1 && array.stride(i) != expected) return false;
        expected *= static_cast<int64_t>(array.shape(i));
    }
    return true;
}

// A contiguous array of the computing type, of one of the shapes given; null where there is none.
const void* real(const std::optional<Array>& array, Type logits, const char* name,
                 std::initializer_list<std::vector<int64_t>> shapes) {
    if (!array) return nullptr;
    const Type wanted = logits == Type::float64 ? Type::float64 : Type::float32;
    require(type_of(*array, name) == wanted, name, "have the computing dtype, float64 for float64 logits, else float32");
    require(is_contiguous(*array), name, "be contiguous");
    for (const auto& shape : shapes) {
        bool same = shape.size() == array->ndim();
        for (size_t i = 0; same && i < shape.size(); ++i) same = static_cast<int64_t>(array->shape(i)) == shape[i];
        if (same) return array->data();
    }
    refuse(name, "fit the shape of the logits");
}

const uint8_t* flags(const std::optional<Array>& array, const char* name, size_t count) {
    if (!array) return nullptr;
    const bool boolean = array->dtype().bits == 8 && array->dtype().lanes == 1;
    require(boolean && is_contiguous(*array) && array->size() == count, name, "be contiguous booleans, one for each");
    return static_cast<const uint8_t*>(array->data());
}

int cross_entropy(Array logits, Array target, Writable loss, std::optional<Writable> gradient, double smoothing,
                  int64_t ignore_index, bool mean, double normalizer, std::optional<Array> weight, bool weight_outside,
                  std::optional<Array> prior, std::optional<Array> class_prior, std::optional<Array> mask,
                  std::optional<Array> class_mask, std::optional<Array> upstream, double upstream_scalar,
                  double target_tolerance, double prior_tolerance, int threads, std::optional<std::string> kernel) {
    Problem p{};
    p.type = type_of(logits, "logits");
    require(logits.ndim() == 2 || logits.ndim() == 3, "logits", "have shape [N, K] or [N, K, M]");
    const bool apart = logits.ndim() == 3;
    p.outer = static_cast<int64_t>(logits.shape(0));
    p.classes = static_cast<int64_t>(logits.shape(1));
    p.inner = apart ? static_cast<int64_t>(logits.shape(2)) : 1;
    require(p.classes > 0, "logits", "have at least one class");
    const auto lies_well = [&](const auto& x) {
        return x.size() == 0 || x.stride(apart ? 2 : 1) == 1 || (apart ? p.inner : p.classes) == 1;
    };
    require(lies_well(logits), "logits", apart ? "have rows that lie side by side" : "have classes that lie side by side");
    p.logits = logits.data();
    p.outer_stride = logits.stride(0);
    p.class_stride = apart ? logits.stride(1) : 1;
    if (gradient) {
        require(type_of(*gradient, "gradient") == p.type && gradient->ndim() == logits.ndim(), "gradient",
                "be of the logits' dtype and shape");
        for (size_t i = 0; i < logits.ndim(); ++i)
            require(gradient->shape(i) == logits.shape(i), "gradient", "be of the logits' dtype and shape");
        require(lies_well(*gradient), "gradient", "lie as the logits must");
        p.gradient = gradient->data();
        p.gradient_outer_stride = gradient->stride(0);
        p.gradient_class_stride = apart ? gradient->stride(1) : 1;
    }

    const size_t rows = static_cast<size_t>(p.outer * p.inner);
    const auto code = static_cast<nb::dlpack::dtype_code>(target.dtype().code);
    require(is_contiguous(target), "target", "be contiguous");
    if (code == nb::dlpack::dtype_code::Int) {
        const auto bits = target.dtype().bits;
        require(bits == 64 || bits == 32, "target", "be int64 or int32");
        require(target.size() == rows, "target", "have a label for each row");
        p.labels = target.data();
        p.labels_are_32_bit = bits == 32;
        p.ignore_index = ignore_index;
    } else {
        p.targets = real(target, p.type, "target", {{p.outer, p.classes}});
    }
    const bool plain = !apart;
    p.weight = real(weight, p.type, "weight", {{p.classes}});
    p.weight_outside = weight_outside;
    p.prior_rows = prior && prior->ndim() == 2;
    p.prior = real(prior, p.type, "prior", {{p.classes}, {p.outer, p.classes}});
    p.class_prior = real(class_prior, p.type, "class_prior", {{p.classes, p.classes}});
    p.mask = flags(mask, "mask", rows);
    p.class_mask_rows = class_mask && class_mask->ndim() == 2;
    p.class_mask =
        flags(class_mask, "class_mask", static_cast<size_t>(p.class_mask_rows ? p.outer * p.classes : p.classes));
    require(plain || !(p.targets || p.prior_rows || p.class_prior || p.class_mask_rows), "logits",
            "have shape [N, K] where each row has targets, a prior or a class mask of its own");
    require(!(p.class_prior && (p.targets || p.prior)), "class_prior", "come with labels, and without prior");
    p.target_tolerance = target_tolerance;
    p.prior_tolerance = prior_tolerance;
    p.smoothing = smoothing;
    p.mean = mean;
    p.normalizer = normalizer;
    p.upstream = real(upstream, p.type, "upstream", {{static_cast<int64_t>(rows)}});
    p.upstream_scalar = upstream_scalar;
    require(type_of(loss, "loss") == (p.type == Type::float64 ? Type::float64 : Type::float32), "loss",
            "have the computing dtype");
    require(is_contiguous(loss) && (loss.ndim() == 0 || loss.size() == rows), "loss", "be a number, or one for each row");
    (loss.ndim() == 0 ? p.total : p.losses) = loss.data();
    p.threads = threads < 1 ? 1 : threads;

    const Kernels& chosen = kernels_named(kernel);
    nb::gil_scoped_release nobody_waits;
    return chosen.cross_entropy(p);
}

// Shape and place of logits and labels, as Python has checked them.
Block block_of(const Array& logits, const Array& labels) {
    const Type type = type_of(logits, "logits");
    require(type == Type::float32 || type == Type::float64, "logits", "be float32 or float64");
    require(logits.ndim() == 2 && logits.shape(1) > 0, "logits", "have shape [N, K]");
    require(logits.size() == 0 || logits.shape(1) == 1 || logits.stride(1) == 1, "logits",
            "have classes that lie side by side");
    require(labels.dtype() == nb::dtype<int64_t>() && is_contiguous(labels) && labels.size() == logits.shape(0),
            "labels", "be contiguous int64, one for each row");
    const Block block{type == Type::float64,
                      static_cast<int64_t>(logits.shape(0)),
                      static_cast<int64_t>(logits.shape(1)),
                      logits.stride(0),
                      logits.data(),
                      static_cast<const int64_t*>(labels.data())};
    for (int64_t i = 0; i < block.rows; ++i)
        require(block.labels[i] >= 0 && block.labels[i] < block.classes, "labels", "be classes of the logits");
    return block;
}

template <class T>
T* results(const Writable& array, const char* name, size_t size) {
    const bool fits = array.dtype() == nb::dtype<T>() && is_contiguous(array) && array.size() == size;
    require(fits, name, "be contiguous, of the dtype and the size of the results");
    return static_cast<T*>(array.data());
}

int64_t row_sums(Array logits, Array labels, const std::vector<double>& inverse, Array edges, Writable ids, Writable numbers,
                 Writable cells, std::optional<std::string> kernel) {
    RowSums sums{};
    sums.block = block_of(logits, labels);
    require(edges.ndim() == 1 && edges.size() > 1, "edges", "have shape [bins + 1]");
    sums.bins = static_cast<int64_t>(edges.size()) - 1;
    sums.edges = real(edges, type_of(logits, "logits"), "edges", {{sums.bins + 1}});
    const size_t rows = logits.shape(0), temperatures = inverse.size();
    sums.temperatures = static_cast<int64_t>(temperatures);
    sums.inverse = inverse.data();
    sums.ids = results<int64_t>(ids, "ids", 2 * rows);
    sums.numbers = results<double>(numbers, "numbers", (4 + 4 * temperatures) * rows);
    sums.cells = results<double>(cells, "cells", 3 * temperatures * logits.shape(1) * static_cast<size_t>(sums.bins));
    const Kernels& chosen = kernels_named(kernel);
    nb::gil_scoped_release nobody_waits;
    return chosen.row_sums(sums);
}

int64_t slopes(Array logits, Array labels, double beta, Writable sums, std::optional<std::string> kernel) {
    Slopes slopes{block_of(logits, labels), beta, {0, 0}};
    double* const to = results<double>(sums, "sums", 2);
    const Kernels& chosen = kernels_named(kernel);
    nb::gil_scoped_release nobody_waits;
    const int64_t wrong = chosen.slopes(slopes);
    to[0] += slopes.sums[0];
    to[1] += slopes.sums[1];
    return wrong;
}

void exp_of(Array x, Writable y, std::optional<std::string> kernel) {
    const Kernels& chosen = kernels_named(kernel);
    require(x.size() == y.size() && is_contiguous(x) && is_contiguous(y), "y", "be like x");
    const Type type = type_of(x, "x");
    require(type == type_of(y, "y"), "y", "be like x");
    const auto count = static_cast<int64_t>(x.size());
    if (type == Type::float32) chosen.exp32(static_cast<const float*>(x.data()), static_cast<float*>(y.data()), count);
    else if (type == Type::float64)
        chosen.exp64(static_cast<const double*>(x.data()), static_cast<double*>(y.data()), count);
    else refuse("x", "be float32 or float64");
}

// DLPack's tensor, as its specification lays it out (version 0.8).
struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};
struct Lent {
    DLManagedTensor managed;
    Buffer buffer;
    std::vector<int64_t> shape;
};

void give_back(DLManagedTensor* managed) {  // from any thread, without Python's lock
    auto* const lent = static_cast<Lent*>(managed->context);
    release(lent->buffer);
    delete lent;
}

// A contiguous array of the shape and dtype of `array`, not initialised, as a DLPack capsule; its memory comes back here
// when the last tensor on it is gone.
nb::object empty_like(Array array) {
    const auto dtype = array.dtype();
    const Buffer found = acquire(array.nbytes());
    if (!found.data) throw std::bad_alloc();
    auto* const lent = new Lent{{}, found, {array.shape_ptr(), array.shape_ptr() + array.ndim()}};
    const auto ndim = static_cast<int32_t>(array.ndim());
    lent->managed = {{found.data, 1, 0, ndim, dtype.code, dtype.bits, dtype.lanes, lent->shape.data(), nullptr, 0},
                     lent,
                     give_back};
    PyObject* const capsule = PyCapsule_New(&lent->managed, "dltensor", [](PyObject* capsule) {
        if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // somebody took it
        auto* const unused = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
        unused->deleter(unused);
    });
    if (!capsule) {
        give_back(&lent->managed);
        throw nb::python_error();
    }
    return nb::steal(capsule);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The CPU kernels of the loss and of evaluation. Private: use labelsmooth.torch and labelsmooth.evaluation.";
    m.def("cross_entropy", &cross_entropy, nb::arg("logits"), nb::arg("target"), nb::arg("loss"),
          nb::arg("gradient").none(), nb::arg("smoothing"), nb::arg("ignore_index") = -100, nb::arg("mean") = false,
          nb::arg("normalizer") = std::numeric_limits<double>::quiet_NaN(), nb::arg("weight") = nb::none(),
          nb::arg("weight_outside") = false, nb::arg("prior") = nb::none(), nb::arg("class_prior") = nb::none(),
          nb::arg("mask") = nb::none(), nb::arg("class_mask") = nb::none(), nb::arg("upstream") = nb::none(),
          nb::arg("upstream_scalar") = 1.0, nb::arg("target_tolerance") = 0.0, nb::arg("prior_tolerance") = 0.0,
          nb::arg("threads") = 1, nb::arg("kernel") = nb::none(),
          "Loss and gradient of logits [N, K], or [N, K, M] with classes on axis 1; what was found wrong, 0 if nothing.");
    m.def("row_sums", &row_sums, nb::arg("logits"), nb::arg("labels"), nb::arg("inverse"), nb::arg("edges"),
          nb::arg("ids"), nb::arg("numbers"), nb::arg("cells"), nb::arg("kernel") = nb::none(),
          "The sums of evaluation.h over rows of logits; the first row that has no softmax, or -1.");
    m.def("slopes", &slopes, nb::arg("logits"), nb::arg("labels"), nb::arg("beta"), nb::arg("sums"),
          nb::arg("kernel") = nb::none(),
          "Adds the derivatives of the NLL in 1/T to sums; the first row that has no softmax, or -1.");
    m.def("exp", &exp_of, nb::arg("x"), nb::arg("y"), nb::arg("kernel") = nb::none(), "y = exp(x), as the kernel has it.");
    m.def("empty_like", &empty_like, nb::arg("array"),
          "A contiguous array like this one as a DLPack capsule, not initialised, its memory from the pool.");
    m.def("rouse", &rouse, "Wake the threads for a job that is about to come.");
    m.def("drop_buffers", &drop, "Free the memory that the pool keeps; how many bytes that was.");
    m.def("kernels", [] {
        std::vector<std::string> names;
        for (const Kernels& some : kernels()) names.emplace_back(some.name);
        return names;
    }, "The kernels that run on this machine, the one in use first.");
    m.attr("PARALLEL_FROM") = parallel_from;
    m.attr("UNDEFINED") = static_cast<int>(label_out_of_range | masked_target | empty_prior);
}
