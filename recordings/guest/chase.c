// chase MIB STEPS HUGE: follows a random cycle through MIB MiB, one cache line a step, in 4 KiB
// pages (HUGE 0) or in 2 MiB pages where the kernel has them (HUGE 1). Records the steps alone.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "marker.h"

struct node {
    struct node *next;
    uint64_t padding[7];
};

static uint64_t state = 88172645463325252u;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

int main(int count, char **words)
{
    if (count != 4)
        return 2;
    size_t nodes = strtoull(words[1], NULL, 0) * 1024 * 1024 / sizeof(struct node);
    size_t steps = strtoull(words[2], NULL, 0);
    int huge = atoi(words[3]);
    size_t large = 2u << 20;
    size_t length = nodes * sizeof(struct node);
    char *place = mmap(NULL, length + large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED)
        return 1;
    struct node *all = (struct node *)(((uintptr_t)place + large - 1) & ~(uintptr_t)(large - 1));
    madvise(all, length, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);

    // One cycle through all nodes (Sattolo).
    uint32_t *order = malloc(nodes * sizeof *order);
    if (!order)
        return 1;
    for (size_t i = 0; i < nodes; i++)
        order[i] = i;
    for (size_t i = nodes - 1; i > 0; i--) {
        size_t j = next_random() % i;
        uint32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (size_t i = 0; i < nodes; i++)
        all[i].next = &all[order[i]];

    marker_begin();
    struct node *at = all;
    for (size_t i = 0; i < steps; i++)
        at = at->next;
    marker_end();
    printf("chase ended at %zu\n", (size_t)(at - all));
    return 0;
}
