// A C face for the few calls of hnswlib that the comparison needs.
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void *nm_new(int dim, size_t count, size_t m, size_t ef_construction, size_t seed);
void nm_add(void *x, const float *v, size_t row);
void nm_set_ef(void *x, size_t ef);
// Nearest first; returns how many were found.
int nm_search(void *x, const float *q, int k, size_t *rows, float *distances);
size_t nm_bytes(void *x);
void nm_free(void *x);

#ifdef __cplusplus
}
#endif
