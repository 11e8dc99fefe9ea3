/**
 * Where the bytes of a file are, as a scheduler asks for it: which executors of this application run on the nodes that
 * hold a file, or that the plan puts it on.
 *
 * <p>Everything here lives in the driver, once a JVM, and refers to no file system: file statuses reach it from
 * wherever they were listed. Nothing here ever fails a query: what is not known is answered with no hosts at all.
 */
package io.cachelet.locality;
