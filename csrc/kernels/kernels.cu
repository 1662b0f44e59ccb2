// What nvcc compiles: the groups of kernels that MTLFAST_GROUP_... macros name.
#include "instances.h"
