//go:build hnswlib

#include <hnswlib/hnswlib.h>

#include "hnswlib.h"

namespace {
struct nm_index {
  hnswlib::L2Space space;
  hnswlib::HierarchicalNSW<float> graph;
  nm_index(int dim, size_t count, size_t m, size_t ef, size_t seed)
      : space(dim), graph(&space, count, m, ef, seed) {}
};
}  // namespace

void *nm_new(int dim, size_t count, size_t m, size_t ef_construction, size_t seed) {
  return new nm_index(dim, count, m, ef_construction, seed);
}

void nm_add(void *x, const float *v, size_t row) { static_cast<nm_index *>(x)->graph.addPoint(v, row); }

void nm_set_ef(void *x, size_t ef) { static_cast<nm_index *>(x)->graph.setEf(ef); }

int nm_search(void *x, const float *q, int k, size_t *rows, float *distances) {
  auto found = static_cast<nm_index *>(x)->graph.searchKnn(q, k);
  int n = static_cast<int>(found.size());
  for (int i = n - 1; i >= 0; i--) {
    distances[i] = found.top().first;
    rows[i] = found.top().second;
    found.pop();
  }
  return n;
}

size_t nm_bytes(void *x) {
  auto &g = static_cast<nm_index *>(x)->graph;
  size_t total = g.cur_element_count * g.size_data_per_element_;
  for (size_t i = 0; i < g.cur_element_count; i++) total += g.element_levels_[i] * g.size_links_per_element_;
  return total;
}

void nm_free(void *x) { delete static_cast<nm_index *>(x); }
