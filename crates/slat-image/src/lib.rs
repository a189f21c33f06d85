//! Physical memory images: opening, finding roots, listing, explaining.
