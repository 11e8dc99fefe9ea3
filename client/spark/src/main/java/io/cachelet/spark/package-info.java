/** Cachelet in Spark: the plug-in, and what it puts on executor pods. */
package io.cachelet.spark;
