#include "sketch.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <string>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "entry.h"
#include "kernels/signs.h"

namespace mtlfast {
namespace {

constexpr int64_t kMostNumbers = int64_t{1} << 60;  // of elements

// Whether a tensor can be added to in place.
void check_sum(const at::Tensor& sum, const char* name, const std::string& shape, bool fits,
               at::ScalarType type, const at::Device& device) {
  check_plain(sum, name, device);
  if (!fits || sum.scalar_type() != type || !sum.is_contiguous() || sum.is_neg())
    throw py::value_error(std::string(name) + ": expected a contiguous tensor " + shape + " of " +
                          c10::toString(type) + ", found " + c10::str(sum.sizes()) + " of " +
                          c10::toString(sum.scalar_type()) +
                          (sum.is_contiguous() ? "" : ", not contiguous"));
  const auto wrong = [&](const char* found) {
    return py::value_error(std::string(name) + ": expected a tensor to add to in place, found " +
                           found);
  };
  if (sum.requires_grad() && c10::GradMode::is_enabled()) throw wrong("one that requires grad");
  if (sum.is_inference() && !c10::InferenceMode::is_enabled()) throw wrong("an inference tensor");
}

void sketch(const at::Tensor& sketch, const at::Tensor& norm, const py::object& grads,
            int64_t first, int64_t seed) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read_list(grads.ptr(), "grads");
  if (plan.num_tensors == 0 && sketch.is_cuda()) plan.device = sketch.device();
  const int64_t num_buckets = sketch.numel();
  const bool is_power = (num_buckets & (num_buckets - 1)) == 0;
  check_sum(sketch, "sketch",
            "[S], S a power of two from " + std::to_string(kLeastBuckets) + " on,",
            sketch.dim() == 1 && num_buckets >= kLeastBuckets && is_power, at::kFloat, plan.device);
  check_sum(norm, "norm", "[] or [1]", norm.dim() <= 1 && norm.numel() == 1, at::kDouble,
            plan.device);
  if (first < 0 || first > kMostNumbers - plan.num_columns)
    throw py::value_error(
        "first: expected a number from 0 on, with the elements at most 2^60, found " +
        std::to_string(first));
  if (plan.num_columns == 0) return;

  float* buckets = sketch.mutable_data_ptr<float>();
  double* total = norm.mutable_data_ptr<double>();
  const uint64_t key = sign_key(seed);
  const auto run = cuda::is_ours(plan.device) ? &cuda::sketch : &cpu::sketch;
  run_held(plan, [&] { run(plan, buckets, num_buckets, total, first, key); });
  sketch.unsafeGetTensorImpl()->bump_version();
  norm.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

void define_sketch(py::module_& module) {
  module.def("sketch", &sketch, py::arg("sketch"), py::arg("norm"), py::arg("grads"),
             py::arg("first"), py::arg("seed"));
}

}  // namespace mtlfast
