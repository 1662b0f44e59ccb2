// Launches, and what a test can set.
#pragma once

#include <string>

namespace shim {

enum Order { kForward, kReverse, kShuffled };  // of blocks, and of threads between two barriers

// False: some threads wait for ever.
bool run(void (*kernel)(const void*), const void* params, unsigned blocks, unsigned threads,
         unsigned shared_bytes);

void set_order(Order order, unsigned seed);

// Leaves out the barrier at a place: on each thread's visit number `visit`, or (-1) always. Line 0: none.
void skip(const char* file, int line, long visit);

// The barriers met so far, each as file:line:most visits by one thread; forgets them.
std::string sites();

}  // namespace shim
