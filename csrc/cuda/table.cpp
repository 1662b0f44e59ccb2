#include "table.h"

#include <stdexcept>

namespace mtlfast::cuda {
namespace {

constexpr int kColumnStep = 2048;  // chunks are multiples of it
constexpr int64_t kChunksPerMultiprocessor = 16;

template <class Value>
Value* place_at(TableBytes& table, int64_t offset) {
  return reinterpret_cast<Value*>(table.bytes.data() + offset);
}

}  // namespace

const char* type_name(ElementType type) {
  switch (type) {
    case kFloat32: return "f32";
    case kFloat64: return "f64";
    case kBFloat16: return "bf16";
    default: return "f16";
  }
}

const TableBytes& make_table(const Plan& plan, ElementType type, const Place& place,
                             const std::vector<const std::vector<void*>*>& more, int max_columns) {
  thread_local TableBytes table;
  thread_local std::vector<int64_t> chosen;
  chosen.clear();
  int64_t columns = 0;
  for (int64_t t = 0; t < plan.num_tensors; ++t) {
    const int64_t size = plan.offsets[t + 1] - plan.offsets[t];
    if (plan.like[t] == nullptr || size == 0) continue;
    if (type != kNumElementTypes && plan.types[t] != type) continue;
    chosen.push_back(t);
    columns += size;
  }
  const int64_t wanted = columns / (kChunksPerMultiprocessor * place.multiprocessors());
  const int64_t chunk = std::clamp<int64_t>((wanted + kColumnStep - 1) / kColumnStep * kColumnStep,
                                            kColumnStep, max_columns);
  const int num_pointers = plan.num_tasks + static_cast<int>(more.size());
  table.layout = {static_cast<int>(chosen.size()), num_pointers};
  table.chunk_columns = static_cast<int>(chunk);
  table.bytes.assign(static_cast<size_t>(table.layout.bytes()), 0);

  const void** pointers = place_at<const void*>(table, 0);
  int64_t* sizes = place_at<int64_t>(table, table.layout.sizes());
  uint32_t* first_chunks = place_at<uint32_t>(table, table.layout.first_chunks());
  int64_t chunks = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int64_t t = chosen[i];
    const int64_t size = plan.offsets[t + 1] - plan.offsets[t];
    uintptr_t bits = 0;
    for (int k = 0; k < num_pointers; ++k) {
      const void* pointer = nullptr;
      if (k < plan.num_tasks) {
        pointer = plan.rows[t * plan.num_tasks + k];
      } else if (!more[k - plan.num_tasks]->empty()) {
        pointer = (*more[k - plan.num_tasks])[t];
      }
      *pointers++ = pointer;
      bits |= reinterpret_cast<uintptr_t>(pointer);
    }
    sizes[i] = size * 2 + (bits % 16 == 0 ? 1 : 0);
    first_chunks[i] = static_cast<uint32_t>(chunks);
    chunks += (size + chunk - 1) / chunk;
  }
  if (chunks > UINT32_MAX)
    throw std::length_error("task_grads: expected fewer than 2^32 chunks of columns, found " +
                            std::to_string(chunks));
  first_chunks[chosen.size()] = static_cast<uint32_t>(chunks);
  table.num_chunks = static_cast<uint32_t>(chunks);
  return table;
}

const unsigned char* upload(const TableBytes& table, const std::string& name, const Place& place) {
  Place::Upload& last = place.last_upload(name);
  if (last.tensor.defined() && last.bytes == table.bytes)
    return static_cast<const unsigned char*>(last.tensor.const_data_ptr());
  // By kernels whose parameters hold the bytes: no host memory has to outlive the call, which a captured graph would
  // read again at every replay.
  at::Tensor tensor = place.empty(static_cast<int64_t>(table.bytes.size()), at::kByte);
  unsigned char* target = static_cast<unsigned char*>(tensor.mutable_data_ptr());
  constexpr int kThreads = 256;
  UploadParams params;
  for (size_t done = 0; done < table.bytes.size(); done += kLargePayload) {
    const size_t count = std::min<size_t>(kLargePayload, table.bytes.size() - done);
    std::memcpy(params.payload, table.bytes.data() + done, count);
    params.target = target + done;
    params.count = static_cast<int>(count / 16);
    place.launch(place.kernel("mtlfast_upload", kThreads), 1, kThreads, params);
  }
  last.bytes = table.bytes;
  last.tensor = std::move(tensor);
  return target;
}

}  // namespace mtlfast::cuda
