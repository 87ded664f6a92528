#include "train/matmul.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

// What makes two products share a primitive.
struct shape {
    int64_t rows, columns, inner;
    int transpose_a, transpose_b, accumulate, bias, residual;
    int threads; // a primitive is compiled for a number of threads
};

struct primitive {
    struct shape shape;
    dnnl_primitive_t handle;
    dnnl_memory_t a, b, out, bias, residual; // descriptions; the pointers are set for each call
    struct primitive *next;
};

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static struct primitive *primitives;
static enum app_status failed = APP_OK;

static void fail(const struct shape *shape, dnnl_status_t status) {
    if (failed == APP_OK) {
        failed = app_fail(APP_FAILED, "oneDNN cannot multiply (%lld, %lld) by (%lld, %lld) matrices: %s.",
                          (long long)shape->rows, (long long)shape->inner, (long long)shape->inner,
                          (long long)shape->columns,
                          status == dnnl_out_of_memory ? "out of memory; choose a smaller batch or model"
                                                       : "this build of the library refuses the operation");
    }
}

static dnnl_status_t describe(dnnl_memory_desc_t *description, int64_t rows, int64_t columns, int transposed) {
    dnnl_dims_t sizes = {rows, columns};
    dnnl_dims_t strides = {transposed ? 1 : columns, transposed ? rows : 1};
    return dnnl_memory_desc_init_by_strides(description, 2, sizes, dnnl_f32, strides);
}

// Post-operations in their order: += of what `out` holds, + residual.
static dnnl_status_t post_operations(const struct shape *shape, const dnnl_memory_desc_t *out,
                                     dnnl_primitive_attr_t attributes) {
    dnnl_post_ops_t operations;
    dnnl_status_t status = dnnl_post_ops_create(&operations);
    if (status != dnnl_success) {
        return status;
    }
    if (shape->accumulate) {
        status = dnnl_post_ops_append_sum(operations, 1.0f);
    } else if (shape->residual) {
        status = dnnl_post_ops_append_binary(operations, dnnl_binary_add, out);
    }
    if (status == dnnl_success) {
        status = dnnl_primitive_attr_set_post_ops(attributes, operations);
    }
    dnnl_post_ops_destroy(operations);
    return status;
}

static dnnl_status_t create_memories(struct primitive *primitive, const dnnl_memory_desc_t *a,
                                     const dnnl_memory_desc_t *b, const dnnl_memory_desc_t *out,
                                     const dnnl_memory_desc_t *bias) {
    dnnl_status_t status = dnnl_memory_create(&primitive->a, a, engine, DNNL_MEMORY_NONE);
    if (status == dnnl_success) {
        status = dnnl_memory_create(&primitive->b, b, engine, DNNL_MEMORY_NONE);
    }
    if (status == dnnl_success) {
        status = dnnl_memory_create(&primitive->out, out, engine, DNNL_MEMORY_NONE);
    }
    if (status == dnnl_success) {
        status = dnnl_memory_create(&primitive->bias, bias, engine, DNNL_MEMORY_NONE);
    }
    if (status == dnnl_success) {
        status = dnnl_memory_create(&primitive->residual, out, engine, DNNL_MEMORY_NONE);
    }
    return status;
}

static dnnl_status_t compile(struct primitive *primitive) {
    const struct shape *shape = &primitive->shape;
    dnnl_memory_desc_t a, b, out, bias;
    dnnl_matmul_desc_t operation;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t description = NULL;
    dnnl_status_t status;
    describe(&a, shape->rows, shape->inner, shape->transpose_a);
    describe(&b, shape->inner, shape->columns, shape->transpose_b);
    describe(&out, shape->rows, shape->columns, 0);
    describe(&bias, 1, shape->columns, 0);
    status = dnnl_matmul_desc_init(&operation, &a, &b, shape->bias ? &bias : NULL, &out);
    if (status == dnnl_success) {
        status = dnnl_primitive_attr_create(&attributes);
    }
    if (status == dnnl_success) {
        status = post_operations(shape, &out, attributes);
    }
    if (status == dnnl_success) {
        status = dnnl_primitive_desc_create(&description, &operation, attributes, engine, NULL);
    }
    if (status == dnnl_success) {
        status = dnnl_primitive_create(&primitive->handle, description);
    }
    if (status == dnnl_success) {
        status = create_memories(primitive, &a, &b, &out, &bias);
    }
    dnnl_primitive_desc_destroy(description);
    dnnl_primitive_attr_destroy(attributes);
    return status;
}

static void destroy(struct primitive *primitive) {
    dnnl_memory_t memories[] = {primitive->a, primitive->b, primitive->out, primitive->bias, primitive->residual};
    for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++) {
        dnnl_memory_destroy(memories[i]);
    }
    dnnl_primitive_destroy(primitive->handle);
    free(primitive);
}

static struct primitive *find_or_compile(const struct shape *shape) {
    for (struct primitive *primitive = primitives; primitive; primitive = primitive->next) {
        if (memcmp(&primitive->shape, shape, sizeof(*shape)) == 0) {
            return primitive;
        }
    }
    dnnl_status_t status = dnnl_success;
    if (!engine) {
        status = dnnl_engine_create(&engine, dnnl_cpu, 0);
        status = status == dnnl_success ? dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) : status;
    }
    struct primitive *primitive = calloc(1, sizeof(*primitive));
    if (!primitive || status != dnnl_success) {
        fail(shape, primitive ? status : dnnl_out_of_memory);
        free(primitive);
        return NULL;
    }
    primitive->shape = *shape;
    status = compile(primitive);
    if (status != dnnl_success) {
        fail(shape, status);
        destroy(primitive);
        return NULL;
    }
    primitive->next = primitives;
    primitives = primitive;
    return primitive;
}

// oneDNN's interface takes the inputs as pointers to non-const, but does not write through them.
static void *writable(const float *pointer) { return (void *)(uintptr_t)pointer; }

void matmul(const struct product *product) {
    struct shape shape;
    memset(&shape, 0, sizeof(shape)); // padding takes part in the comparison
    shape.rows = product->rows, shape.columns = product->columns, shape.inner = product->inner;
    shape.transpose_a = product->transpose_a, shape.transpose_b = product->transpose_b;
    shape.accumulate = product->accumulate, shape.bias = product->bias != NULL;
    shape.residual = product->residual != NULL;
    shape.threads = omp_get_max_threads();
    struct primitive *primitive = failed == APP_OK ? find_or_compile(&shape) : NULL;
    if (!primitive) {
        return;
    }
    dnnl_memory_set_data_handle(primitive->a, writable(product->a));
    dnnl_memory_set_data_handle(primitive->b, writable(product->b));
    dnnl_memory_set_data_handle(primitive->out, product->out);
    dnnl_exec_arg_t arguments[5] = {
        {DNNL_ARG_SRC, primitive->a}, {DNNL_ARG_WEIGHTS, primitive->b}, {DNNL_ARG_DST, primitive->out}};
    int count = 3;
    if (product->bias) {
        dnnl_memory_set_data_handle(primitive->bias, writable(product->bias));
        arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, primitive->bias};
    }
    if (product->residual) {
        dnnl_memory_set_data_handle(primitive->residual, writable(product->residual));
        arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, primitive->residual};
    }
    dnnl_status_t status = dnnl_primitive_execute(primitive->handle, stream, count, arguments);
    status = status == dnnl_success ? dnnl_stream_wait(stream) : status;
    if (status != dnnl_success) {
        fail(&shape, status);
    }
}

enum app_status matmul_status(void) {
    enum app_status status = failed;
    failed = APP_OK;
    return status;
}

void matmul_small(const struct small_product *product) {
    dnnl_sgemm(product->transpose_a ? 'T' : 'N', product->transpose_b ? 'T' : 'N', product->rows, product->columns,
               product->inner, product->factor, product->a, product->a_stride, product->b, product->b_stride,
               product->accumulate ? 1.0f : 0.0f, product->out, product->out_stride);
}

void matmul_release(void) {
    while (primitives) {
        struct primitive *next = primitives->next;
        destroy(primitives);
        primitives = next;
    }
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    stream = NULL;
    engine = NULL;
}
