/* The baseline: the same reads as the Java benchmarks make, by pread, and nothing else.
 *
 *   pread FILE
 *
 * For each line on stdin, "PIECE COUNT STEP SEED", it reads COUNT pieces of PIECE bytes: one after the other where STEP is
 * "next", each at an aligned place drawn at random where it is "random". It answers with a line when they are read. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The generator of the Java side. */
static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

int main(int argc, char **argv) {
    struct stat facts;
    int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &facts) != 0) {
        fprintf(stderr, "usage: pread FILE\n");
        return 64;
    }
    char *buffer = NULL;
    size_t held = 0, piece;
    long count;
    char step[16];
    uint64_t state;
    while (scanf("%zu %ld %15s %lu", &piece, &count, step, &state) == 4) {
        if (piece > held) {
            free(buffer);
            buffer = aligned_alloc(4096, held = piece);
            memset(buffer, 1, piece);
        }
        uint64_t pieces = facts.st_size / piece, at = 0;
        int random = strcmp(step, "random") == 0;
        for (long i = 0; i < count; i++, at++) {
            uint64_t place = random ? (next(&state) >> 1) % pieces : at % pieces;
            if (pread(file, buffer, piece, place * piece) != (ssize_t)piece) {
                perror("pread");
                return 1;
            }
        }
        puts("read");
        fflush(stdout);
    }
    return 0;
}
