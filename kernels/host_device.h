#pragma once

#ifdef __CUDACC__
#define ROUNDHOUSE_HD __host__ __device__
#else
#define ROUNDHOUSE_HD
#endif
