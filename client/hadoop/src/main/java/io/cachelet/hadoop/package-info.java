/**
 * The Hadoop file systems: stock S3A and OSS, but that reads go through the daemon of this node.
 *
 * <p>Listing, writing, renaming, committing, credentials and errors are the stock classes', by inheritance. Two things
 * are ours: the stream that {@code open} gives ({@link io.cachelet.hadoop.CacheletInputStream}), and the block
 * locations of listed files ({@link io.cachelet.hadoop.CacheletFileStatus}).
 *
 * <p>Invariants: who reads has asked the origin, with its own credentials, for the generation that it reads; a stream
 * gives the bytes of one generation or an error; a read that the origin could serve does not fail because of Cachelet;
 * closing a file system disturbs no other file system's streams.
 */
package io.cachelet.hadoop;
