// cuBLAS, cuBLASLt and cuDNN, as far as torch calls them for products, convolutions and batch norms. A call that computes
// is one launch on the handle's stream, though the real library may launch several kernels; it does nothing.
//
// cuDNN is asked for a convolution by descriptors: of tensors, of the operation, of an engine, of a plan. Here every
// descriptor accepts everything, and each question for engines is answered with one, which needs no workspace. So what
// torch does around a convolution runs, the search for the fastest plan included; what cuDNN would refuse does not show.
// Descriptors of cuBLASLt and of cuDNN's older tensors are the real libraries' own: they need no card.
#include "card.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct handle {
    cudaStream_t stream;
};

static int compute(cudaStream_t stream, const char *what, int status_of_failure) {
    count(LIBRARY_CALLS);
    if (submit(stream, what, LAUNCHES, (struct work){.kind = NOTHING}) == cudaSuccess) {
        return 0;
    }
    cudaGetLastError(); // the libraries bring a runtime of their own: torch does not see its last error
    return status_of_failure;
}

static int make_handle(struct handle **handle) {
    *handle = calloc(1, sizeof **handle);
    return 0;
}

// ---- cuBLAS

enum { CUBLAS_EXECUTION_FAILED = 13 };

EXPORT int cublasCreate_v2(struct handle **handle) {
    return make_handle(handle);
}

EXPORT int cublasDestroy_v2(struct handle *handle) {
    return 0;
}

EXPORT int cublasSetStream_v2(struct handle *handle, cudaStream_t stream) {
    handle->stream = stream;
    return 0;
}

EXPORT int cublasSetWorkspace_v2(struct handle *handle, void *workspace, size_t bytes) {
    return 0;
}

EXPORT int cublasSetSmCountTarget(struct handle *handle, int count) {
    return 0;
}

EXPORT int cublasSetMathMode(struct handle *handle, int mode) {
    return 0;
}

EXPORT int cublasGetMathMode(struct handle *handle, int *mode) {
    *mode = 0;
    return 0;
}

EXPORT int cublasSetPointerMode_v2(struct handle *handle, int mode) {
    return 0;
}

EXPORT int cublasGetPointerMode_v2(struct handle *handle, int *mode) {
    *mode = 0;
    return 0;
}

#define CUBLAS_PRODUCT(name)                                                                                           \
    EXPORT int name(struct handle *handle) {                                                                           \
        return compute(handle->stream, #name, CUBLAS_EXECUTION_FAILED);                                                \
    }

CUBLAS_PRODUCT(cublasSgemm_v2)
CUBLAS_PRODUCT(cublasDgemm_v2)
CUBLAS_PRODUCT(cublasSgemv_v2)
CUBLAS_PRODUCT(cublasDgemv_v2)
CUBLAS_PRODUCT(cublasSgemmEx)
CUBLAS_PRODUCT(cublasGemmEx)
CUBLAS_PRODUCT(cublasSgemmStridedBatched)
CUBLAS_PRODUCT(cublasDgemmStridedBatched)
CUBLAS_PRODUCT(cublasGemmStridedBatchedEx)
CUBLAS_PRODUCT(cublasSdot_v2)
CUBLAS_PRODUCT(cublasDdot_v2)
CUBLAS_PRODUCT(cublasDotEx)

// ---- cuBLASLt

struct lt_result { // cublasLtMatmulHeuristicResult_t
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d,
                                          void *preference, int wanted, struct lt_result *results, int *found) {
    memset(results, 0, sizeof *results);
    *found = 1;
    return 0;
}

EXPORT int cublasLtMatmul(void *handle, void *product, const void *alpha, const void *a, void *layout_a, const void *b,
                          void *layout_b, const void *beta, const void *c, void *layout_c, void *d, void *layout_d,
                          const void *algorithm, void *workspace, size_t bytes, cudaStream_t stream) {
    return compute(stream, "cublasLtMatmul", CUBLAS_EXECUTION_FAILED);
}

// ---- cuDNN

enum { CUDNN_EXECUTION_FAILED = 5000 };
enum { INT64 = 3, DESCRIPTOR = 15 }; // kinds of an attribute (cudnnBackendAttributeType_t)

EXPORT int cudnnCreate(struct handle **handle) {
    return make_handle(handle);
}

EXPORT int cudnnDestroy(struct handle *handle) {
    return 0;
}

EXPORT int cudnnSetStream(struct handle *handle, cudaStream_t stream) {
    handle->stream = stream;
    return 0;
}

EXPORT int cudnnGetStream(struct handle *handle, cudaStream_t *stream) {
    *stream = handle->stream;
    return 0;
}

EXPORT int cudnnBackendCreateDescriptor(int kind, void **descriptor) {
    *descriptor = calloc(1, 8);
    return 0;
}

EXPORT int cudnnBackendDestroyDescriptor(void *descriptor) {
    free(descriptor);
    return 0;
}

EXPORT int cudnnBackendInitialize(void *descriptor) {
    return 0;
}

EXPORT int cudnnBackendFinalize(void *descriptor) {
    return 0;
}

EXPORT int cudnnBackendSetAttribute(void *descriptor, int name, int kind, int64_t length, const void *values) {
    return 0;
}

// One of whatever is counted or asked for as a descriptor; the caller has made that descriptor. Numbers are 0.
EXPORT int cudnnBackendGetAttribute(const void *descriptor, int name, int kind, int64_t room, int64_t *length,
                                    void *values) {
    if (length) {
        *length = kind == DESCRIPTOR || kind == INT64 ? 1 : 0;
    }
    if (kind == INT64 && values && room) {
        *(int64_t *)values = 0;
    }
    return 0;
}

EXPORT int cudnnBackendExecute(struct handle *handle, void *plan, void *tensors) {
    return compute(handle->stream, "cudnnBackendExecute", CUDNN_EXECUTION_FAILED);
}

#define CUDNN_COMPUTES(name)                                                                                           \
    EXPORT int name(struct handle *handle) {                                                                           \
        return compute(handle->stream, #name, CUDNN_EXECUTION_FAILED);                                                 \
    }

CUDNN_COMPUTES(cudnnBatchNormalizationForwardTrainingEx)
CUDNN_COMPUTES(cudnnBatchNormalizationForwardInference)
CUDNN_COMPUTES(cudnnBatchNormalizationBackwardEx)
CUDNN_COMPUTES(cudnnConvolutionForward)
CUDNN_COMPUTES(cudnnConvolutionBackwardData)
CUDNN_COMPUTES(cudnnConvolutionBackwardFilter)

EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *handle, int mode, int operations, void *x,
                                                                    void *z, void *y, void *statistics,
                                                                    void *activation, size_t *bytes) {
    *bytes = 0;
    return 0;
}

EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *handle, int mode, int operations, void *x, void *y,
                                                             void *dy, void *dz, void *dx, void *statistics,
                                                             void *activation, size_t *bytes) {
    *bytes = 0;
    return 0;
}

EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int operations,
                                                                void *activation, void *x, size_t *bytes) {
    *bytes = 0;
    return 0;
}
