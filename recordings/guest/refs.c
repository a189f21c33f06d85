// Touches 16 MiB, asks the kernel to clear the accessed bits of all pages (/proc/self/clear_refs),
// and reads every second page again. Records from the clearing on.
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "marker.h"

int main(void)
{
    size_t length = 16 << 20;
    volatile char *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED)
        return 1;
    madvise((void *)place, length, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < length; i += 4096)
        place[i] = 1;

    marker_begin();
    int file = open("/proc/self/clear_refs", O_WRONLY);
    int written = write(file, "1", 1);
    close(file);
    unsigned sum = 0;
    for (size_t i = 0; i < length; i += 8192)
        sum += place[i];
    marker_end();
    printf("refs %d %u\n", written, sum);
    return written != 1 || sum != length / 8192;
}
