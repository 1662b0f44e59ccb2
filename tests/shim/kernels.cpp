// One group of kernels (MTLFAST_GROUP_...) for fibers.
#include "fibers.h"
// The kernels come last: they count on what CUDA has built in.
#include "kernels/instances.h"
