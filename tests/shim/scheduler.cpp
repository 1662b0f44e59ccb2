// Runs the blocks of a launch one after another, the threads of a block as fibers.
#include "scheduler.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>

#include "fibers.h"

namespace shim {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWarpSize = 32;

// Some threads that wait for each other.
struct Meeting {
  unsigned live = 0;
  unsigned arrived = 0;
  uint64_t round = 0;

  // Returns whether the caller was the last to come.
  bool arrive() {
    if (++arrived < live) return false;
    arrived = 0;
    ++round;
    return true;
  }
  void leave() {
    --live;
    if (live > 0 && arrived == live) {
      arrived = 0;
      ++round;
    }
  }
};

struct Warp {
  Meeting meeting;
  uint64_t values[2][kWarpSize] = {};
};

struct Fiber {
  ucontext_t context;
  jmp_buf state;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  Index index = {};
  bool started = false;
  bool finished = false;
  const Meeting* waits_for = nullptr;
  uint64_t until = 0;  // the round that it waits for
  uint64_t exchanges = 0;
  std::map<std::pair<std::string, int>, long> visits;
};

struct Poison {
  void* data;
  size_t bytes;
};

struct Site {
  std::string file;
  int line = 0;
  long visit = -1;  // -1: every one
};

struct Machine {
  Order order = kForward;
  std::mt19937 random{0};
  Site skipped;
  std::map<std::pair<std::string, int>, long> sites;
  std::vector<Poison> shared;
  std::vector<unsigned char> dynamic;

  Index block = {};
  Index block_size = {};
  Index grid = {};
  Meeting all;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  void (*kernel)(const void*) = nullptr;
  const void* params = nullptr;
};

Machine& machine() {
  static Machine it;
  return it;
}

Warp& own_warp() { return machine().warps[machine().current->index.x / kWarpSize]; }

void run_fiber() {
  Machine& m = machine();
  m.kernel(m.params);
  m.current->finished = true;
  own_warp().meeting.leave();
  m.all.leave();
  _longjmp(m.scheduler, 1);
}

void resume(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
  if (_setjmp(m.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void wait(Meeting& meeting) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  fiber.until = meeting.round + 1;
  if (meeting.arrive()) return;
  fiber.waits_for = &meeting;
  if (_setjmp(fiber.state) == 0) _longjmp(m.scheduler, 1);
  fiber.waits_for = nullptr;
}

// Whether this visit of a barrier is the one that a test leaves out.
bool is_skipped(const char* path, int line) {
  Machine& m = machine();
  const std::string full(path);
  const std::pair<std::string, int> site(full.substr(full.find_last_of('/') + 1), line);
  const long visit = m.current->visits[site]++;
  long& most = m.sites[site];
  most = std::max(most, visit + 1);
  return site.second == m.skipped.line && site.first == m.skipped.file &&
         (m.skipped.visit < 0 || m.skipped.visit == visit);
}

bool runnable(const Fiber& fiber) {
  return !fiber.finished && (fiber.waits_for == nullptr || fiber.waits_for->round >= fiber.until);
}

std::vector<size_t> next_order(size_t count) {
  Machine& m = machine();
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (m.order == kReverse) std::reverse(order.begin(), order.end());
  if (m.order == kShuffled) std::shuffle(order.begin(), order.end(), m.random);
  return order;
}

bool run_block() {
  Machine& m = machine();
  for (const Poison& poison : m.shared) memset(poison.data, 0xff, poison.bytes);
  std::fill(m.dynamic.begin(), m.dynamic.end(), 0xff);
  const unsigned threads = m.block_size.x;
  m.all = {};
  m.all.live = threads;
  m.warps.assign((threads + kWarpSize - 1) / kWarpSize, Warp());
  while (m.fibers.size() < threads) m.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    ++m.warps[i / kWarpSize].meeting.live;
    fiber.index = {i, 0, 0};
    fiber.started = fiber.finished = false;
    fiber.waits_for = nullptr;
    fiber.exchanges = 0;
    fiber.visits.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  unsigned left = threads;
  while (left > 0) {
    bool progress = false;
    for (const size_t i : next_order(threads)) {
      Fiber& fiber = *m.fibers[i];
      if (!runnable(fiber)) continue;
      resume(fiber);
      progress = true;
      if (fiber.finished) --left;
    }
    if (!progress) {
      fprintf(stderr, "shim: %u threads of block %u wait for others that never come\n", left,
              m.block.x);
      return false;
    }
  }
  return true;
}

}  // namespace

const Index& thread_index() { return machine().current->index; }
const Index& block_index() { return machine().block; }
const Index& block_size() { return machine().block_size; }
const Index& grid_size() { return machine().grid; }
void* dynamic_shared() { return machine().dynamic.data(); }

void sync_threads(const char* file, int line) {
  if (!is_skipped(file, line)) wait(machine().all);
}

void sync_warp(unsigned, const char* file, int line) {
  if (!is_skipped(file, line)) wait(own_warp().meeting);
}

const uint64_t* exchange(unsigned, uint64_t mine) {
  Fiber& fiber = *machine().current;
  Warp& warp = own_warp();
  // Two buffers: a lane may bring its next value before another one has read this one, but not the one after that.
  uint64_t* values = warp.values[fiber.exchanges++ % 2];
  values[fiber.index.x % kWarpSize] = mine;
  wait(warp.meeting);
  return values;
}

SharedBase::SharedBase(void* data, size_t bytes) {
  memset(data, 0xff, bytes);
  machine().shared.push_back({data, bytes});
}

bool run(void (*kernel)(const void*), const void* params, unsigned blocks, unsigned threads,
         unsigned shared_bytes) {
  Machine& m = machine();
  m.kernel = kernel;
  m.params = params;
  m.grid = {blocks, 1, 1};
  m.block_size = {threads, 1, 1};
  m.dynamic.assign(shared_bytes + 16, 0xff);
  for (const size_t block : next_order(blocks)) {
    m.block = {static_cast<unsigned>(block), 0, 0};
    if (!run_block()) return false;
  }
  return true;
}

void set_order(Order order, unsigned seed) {
  machine().order = order;
  machine().random.seed(seed);
}

void skip(const char* file, int line, long visit) { machine().skipped = {file, line, visit}; }

std::string sites() {
  std::string text;
  for (const auto& [site, visits] : machine().sites)
    text += site.first + ":" + std::to_string(site.second) + ":" + std::to_string(visits) + "\n";
  machine().sites.clear();
  return text;
}

}  // namespace shim
