/**
 * The native client: objects of S3 and OSS, read from descriptors of the local cache's files.
 *
 * <p>{@link io.cachelet.client.NativeLibrary} finds and loads the library;
 * {@link io.cachelet.client.CacheletClient} is this process's relation to the daemon of its node;
 * {@link io.cachelet.client.CacheletObject} is one generation of one object, read at positions, by any number of
 * threads. What the daemon does not serve ends in a {@link io.cachelet.client.CacheletException}, which says whether
 * the origin still may: this package knows no origin, no Hadoop and no Spark.
 */
package io.cachelet.client;
