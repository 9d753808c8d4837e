// Products of matrices of 8×8 from registers and threadgroup memory.

// A lane holds two neighbours of each matrix, here.
struct Place {
    uint row, column;
};

FUNCTION Place place_of(uint thread_index) {
    uint lane = thread_index % 32;
    Place place;
    place.row = (lane / 4 & 4) + lane / 2 % 4;
    place.column = (lane / 4 & 2) * 2 + lane % 2 * 2;
    return place;
}

// Over the four lanes that hold one row of a matrix.
FUNCTION float matrix_row_maximum(float value) {
    value = maximum(value, warp_shuffle_xor(value, 1));
    return maximum(value, warp_shuffle_xor(value, 8));
}
FUNCTION float matrix_row_sum(float value) {
    value += warp_shuffle_xor(value, 1);
    return value + warp_shuffle_xor(value, 8);
}

// sum += left · right
FUNCTION void multiply_add(LOCAL float2 &sum, float2 left, float2 right) {
    simdgroup_float8x8 a, b, c;
    a.thread_elements()[0] = left.x;
    a.thread_elements()[1] = left.y;
    b.thread_elements()[0] = right.x;
    b.thread_elements()[1] = right.y;
    c.thread_elements()[0] = sum.x;
    c.thread_elements()[1] = sum.y;
    simdgroup_multiply_accumulate(c, a, b, c);
    sum = float2(c.thread_elements()[0], c.thread_elements()[1]);
}

FUNCTION float2 widened(uint bits, f16) { return float2(f16_to_float(ushort(bits & 0xffffu)), f16_to_float(ushort(bits >> 16))); }
FUNCTION float2 widened(uint bits, bf16) { return float2(as_float(bits << 16), as_float(bits & 0xffff0000u)); }

FUNCTION float2 global_pair(const GLOBAL float *from) { return float2(from[0], from[1]); }
template <typename T> FUNCTION float2 global_pair(const GLOBAL T *from) { return widened(*(const GLOBAL uint *)from, T()); }
FUNCTION float2 shared_pair(SHARED_POINTER(const float) from) { return float2(from[0], from[1]); }
template <typename T> FUNCTION float2 shared_pair(SHARED_POINTER(const T) from) {
    return widened(*(SHARED_POINTER(const uint))from, T());
}
FUNCTION float shared_one(SHARED_POINTER(const float) from) { return *from; }
FUNCTION float shared_one(SHARED_POINTER(const f16) from) { return f16_to_float(from->bits); }
FUNCTION float shared_one(SHARED_POINTER(const bf16) from) { return as_float(uint(from->bits) << 16); }

// Elements of 16 bytes; and from one row of a tile to the next, so that rows start in different banks.
template <typename T> FUNCTION constexpr uint lanes_of() { return 16 / sizeof(T); }
template <typename T, int D> FUNCTION constexpr uint stride_of() { return D + 16 / sizeof(T); }

// A right matrix of a tile whose rows are the result's columns row..row + 8; summed over columns 8d...
template <typename T, int D> FUNCTION float2 right(SHARED_POINTER(const T) tile, uint row, uint d, Place place) {
    SHARED_POINTER(const T) from = tile + (row + place.column) * stride_of<T, D>() + 8 * d + place.row;
    return float2(shared_one(from), shared_one(from + stride_of<T, D>()));
}

// A right matrix of a tile whose rows row..row + 8 are summed over; columns 8d...
template <typename T, int D> FUNCTION float2 right_turned(SHARED_POINTER(const T) tile, uint row, uint d, Place place) {
    return shared_pair(tile + (row + place.row) * stride_of<T, D>() + 8 * d + place.column);
}

// A warp's 8 rows as left matrices, kept in registers or read again for each product.
template <typename T, int D, bool KEPT> struct Left {
    const GLOBAL T *from;
    bool exists;
    float2 kept[KEPT ? D / 8 : 1];
};

template <typename T, int D, bool KEPT> FUNCTION float2 left_matrix(LOCAL const Left<T, D, KEPT> &left, uint d) {
    if (KEPT) return left.kept[KEPT ? d : 0];
    return left.exists ? global_pair(left.from + 8 * d) : float2(0.0f, 0.0f);
}

// `row`: the lane's own; read if it exists.
template <typename T, int D, bool KEPT>
FUNCTION void fill(LOCAL Left<T, D, KEPT> &left, const GLOBAL T *row, bool exists, Place place, uint fragments) {
    left.from = row + place.column;
    left.exists = exists;
    if (!KEPT) return;
#pragma unroll
    for (uint d = 0; d < D / 8; d++)
        if (d < fragments) left.kept[KEPT ? d : 0] = exists ? global_pair(left.from + 8 * d) : float2(0.0f, 0.0f);
}

// products[8, N] = left[8, D] · tile[N, D]ᵀ
template <typename T, int D, int N, bool KEPT>
FUNCTION void multiply_rows(LOCAL float2 (&products)[N / 8], LOCAL const Left<T, D, KEPT> &left, SHARED_POINTER(const T) tile,
                            uint fragments, Place place) {
#pragma unroll
    for (uint n = 0; n < N / 8; n++) products[n] = float2(0.0f, 0.0f);
#pragma unroll
    for (uint d = 0; d < D / 8; d++) {
        if (d >= fragments) break;
        float2 own = left_matrix(left, d);
#pragma unroll
        for (uint n = 0; n < N / 8; n++) multiply_add(products[n], own, right<T, D>(tile, 8 * n, d, place));
    }
}

// sums[8, COLUMNS] += weights[8, N] · tile[N, COLUMNS], from matrix `first` of its columns on.
template <typename T, int D, int N, int COLUMNS>
FUNCTION void multiply_turned(LOCAL float2 (&sums)[COLUMNS / 8], LOCAL const float2 (&weights)[N / 8],
                              SHARED_POINTER(const T) tile, uint first, uint fragments, Place place) {
#pragma unroll
    for (uint d = 0; d < COLUMNS / 8; d++) {
        if (first + d >= fragments) break;
#pragma unroll
        for (uint n = 0; n < N / 8; n++) multiply_add(sums[d], weights[n], right_turned<T, D>(tile, 8 * n, first + d, place));
    }
}

// Copies N rows to a tile, by all threads of the block; zeros from row `count` on.
template <typename T, int D, int N>
FUNCTION void copy_tile(SHARED_POINTER(T) tile, const GLOBAL T *from, Index stride, uint count, uint head_dim, uint thread_index) {
    uint pieces = head_dim / lanes_of<T>();
    for (uint i = thread_index; i < N * pieces; i += BLOCK_THREADS) {
        uint row = i / pieces, piece = i % pieces;
        uint4 value = four(0, 0, 0, 0);
        if (row < count) value = *(const GLOBAL uint4 *)(from + row * stride + piece * lanes_of<T>());
        *(SHARED_POINTER(uint4))(tile + row * stride_of<T, D>() + piece * lanes_of<T>()) = value;
    }
}

// Writes the lane's row.
template <typename T, int COLUMNS>
FUNCTION void store_row(LOCAL const float2 (&sums)[COLUMNS / 8], GLOBAL T *row, float factor, uint first, uint fragments,
                        Place place) {
#pragma unroll
    for (uint d = 0; d < COLUMNS / 8; d++) {
        if (first + d >= fragments) break;
        GLOBAL T *to = row + 8 * (first + d) + place.column;
        store(sums[d].x * factor, to);
        store(sums[d].y * factor, to + 1);
    }
}
