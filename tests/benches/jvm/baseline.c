/* The baseline of the benchmarks beside it: a loop of pread in C, in the same process and into the same buffer. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <jni.h>
#include <stdint.h>
#include <unistd.h>

JNIEXPORT jint JNICALL Java_io_cachelet_bench_Baseline_open(JNIEnv *env, jclass class, jstring path) {
    (void)class;
    const char *name = (*env)->GetStringUTFChars(env, path, NULL);
    int file = open(name, O_RDONLY | O_CLOEXEC);
    (*env)->ReleaseStringUTFChars(env, path, name);
    return file;
}

/* Reads `piece` bytes from each of the positions, behind `offset`; says how many of them could be read whole. */
JNIEXPORT jint JNICALL Java_io_cachelet_bench_Baseline_read(JNIEnv *env, jclass class, jint file, jlong offset,
                                                            jlongArray positions, jint piece, jobject buffer) {
    (void)class;
    char *memory = (*env)->GetDirectBufferAddress(env, buffer);
    jlong *at = (*env)->GetLongArrayElements(env, positions, NULL);
    jsize count = (*env)->GetArrayLength(env, positions), whole = 0;
    for (jsize i = 0; i < count; i++) {
        whole += pread(file, memory, piece, offset + at[i]) == piece;
    }
    (*env)->ReleaseLongArrayElements(env, positions, at, JNI_ABORT);
    return whole;
}
