#include "../kernels/params.h"
#include "kernels.h"
#include "launch.h"

namespace mtlfast::cuda {

void solve(const at::Device& device, const std::string& kernel, const SolveArgs& args,
           int num_options, int64_t workspace, int* status) {
  const Place place(device);
  SolveParams params = {};
  params.gramian = args.gramian;
  params.losses = args.losses;
  params.inputs = args.inputs;
  params.order = args.order;
  params.rng = args.rng;
  params.state = args.state;
  params.weights = args.weights;
  params.status = status;
  params.num_tasks = args.num_tasks;
  for (int i = 0; i < num_options; ++i) params.options[i] = args.options[i];

  const int64_t count = static_cast<int64_t>(args.num_tasks) * args.num_tasks + workspace;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(double));
  const bool fits = bytes <= place.max_shared_bytes();
  at::Tensor scratch;
  if (!fits) {
    scratch = place.empty(count, at::kDouble);
    params.scratch = scratch.mutable_data_ptr<double>();
  }
  constexpr int kThreads = 32;
  place.launch(place.kernel(kernel, kThreads, place.max_shared_bytes()), 1, kThreads, params,
               fits ? static_cast<int>(bytes) : 0);
}

}  // namespace mtlfast::cuda
