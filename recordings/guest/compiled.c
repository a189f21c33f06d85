// What the compiler is recorded on: a small hash table with its sort, enough to reach most passes.
#include <stddef.h>
#include <stdint.h>

struct entry {
    uint64_t key;
    uint32_t value;
    struct entry *next;
};

struct table {
    struct entry *buckets[256];
    struct entry pool[1024];
    size_t used;
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

uint32_t *find(struct table *table, uint64_t key)
{
    struct entry **at = &table->buckets[mix(key) & 255];
    for (; *at; at = &(*at)->next)
        if ((*at)->key == key)
            return &(*at)->value;
    if (table->used == 1024)
        return NULL;
    struct entry *entry = &table->pool[table->used++];
    entry->key = key;
    entry->value = 0;
    entry->next = NULL;
    *at = entry;
    return &entry->value;
}

static void swap(uint64_t *a, uint64_t *b)
{
    uint64_t keep = *a;
    *a = *b;
    *b = keep;
}

void sort(uint64_t *from, uint64_t *to)
{
    while (to - from > 1) {
        uint64_t pivot = from[(to - from) / 2];
        uint64_t *low = from, *high = to - 1;
        while (low <= high) {
            while (*low < pivot)
                low++;
            while (*high > pivot)
                high--;
            if (low <= high)
                swap(low++, high--);
        }
        sort(from, high + 1);
        from = low;
    }
}

uint64_t count(struct table *table, const uint64_t *keys, size_t length)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        uint32_t *value = find(table, keys[i]);
        if (value)
            sum += ++*value * (double)keys[i] > 1e9 ? 1 : 2;
    }
    return sum;
}
