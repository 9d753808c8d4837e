// Tiles of rows in shared memory, and products of fragments read from them.
//
// A fragment of the left matrix covers 16 rows and 16 of the summed columns, one of the right matrix 8 and 16.
#pragma once

#include "warp.cuh"

namespace attention {

/// Rows of `D` 16-bit numbers. Eight rows at one column start in eight different bank groups: by exclusive-or where
/// the row has a power of two of 16-byte pieces, by an odd number of pieces per row otherwise.
template <int D> struct Tile {
    static constexpr int PIECES = D / 8;
    static constexpr bool SWIZZLED = PIECES >= 8 && (PIECES & (PIECES - 1)) == 0;
    static constexpr int ROW_BYTES = 16 * (SWIZZLED ? PIECES : PIECES | 1);

    __device__ static __forceinline__ u32 offset(u32 row, u32 piece) {
        return row * ROW_BYTES + ((SWIZZLED ? piece ^ (row & 7) : piece) << 4);
    }
};

/// Starts copying `ROWS` rows to a tile; `row_pointer(row)` is null where the tile gets zeros, and so do the columns
/// from `head_dim` on.
template <int D, int ROWS, int THREADS, typename T, typename RowPointer>
__device__ __forceinline__ void copy_tile(u32 tile, const T *anywhere, u32 head_dim, RowPointer row_pointer) {
    constexpr int PIECES = Tile<D>::PIECES, TOTAL = ROWS * PIECES;
#pragma unroll
    for (int first = 0; first < TOTAL; first += THREADS) {
        const u32 index = first + threadIdx.x;
        if (TOTAL % THREADS != 0 && index >= TOTAL) break;
        const u32 row = index / PIECES, piece = index % PIECES;
        const T *source = row_pointer(row);
        const bool valid = source != nullptr && piece * 8 < head_dim;
        copy_16(tile + Tile<D>::offset(row, piece), valid ? source + piece * 8 : anywhere, valid);
    }
}

/// Left fragment: rows `row..row + 16`, columns `16 step..`.
template <int D> __device__ __forceinline__ void load_left(u32 (&to)[4], u32 tile, u32 row, u32 step) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(to, tile + Tile<D>::offset(row + lane % 16, 2 * step + lane / 16));
}

/// Two right fragments of a tile whose rows are the result's columns `row..row + 16`; summed columns `16 step..`.
template <int D> __device__ __forceinline__ void load_right(u32 (&to)[4], u32 tile, u32 row, u32 step) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(to, tile + Tile<D>::offset(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

/// Two right fragments of a tile whose rows `row..row + 16` are summed; result columns `8 piece..8 piece + 16`.
template <int D> __device__ __forceinline__ void load_right_turned(u32 (&to)[4], u32 tile, u32 row, u32 piece) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices_transposed(to, tile + Tile<D>::offset(row + lane % 16, piece + lane / 16));
}

/// Left fragments of a warp's rows, kept in registers or read again for each product.
template <int D, int ROW_FRAGMENTS, bool IN_REGISTERS> struct LeftMatrix {
    u32 tile, row;
    u32 held[IN_REGISTERS ? D / 16 : 1][ROW_FRAGMENTS][4];

    __device__ __forceinline__ void fill(u32 from_tile, u32 from_row) {
        tile = from_tile;
        row = from_row;
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int step = 0; step < D / 16; step++) {
#pragma unroll
                for (int m = 0; m < ROW_FRAGMENTS; m++) load_left<D>(held[step][m], tile, row + 16 * m, step);
            }
        }
    }

    __device__ __forceinline__ void load(u32 (&to)[ROW_FRAGMENTS][4], int step) const {
#pragma unroll
        for (int m = 0; m < ROW_FRAGMENTS; m++) {
            if (IN_REGISTERS) {
#pragma unroll
                for (int i = 0; i < 4; i++) to[m][i] = held[step][m][i];
            } else {
                load_left<D>(to[m], tile, row + 16 * m, step);
            }
        }
    }
};

/// scores[rows, columns] = left[rows, D] · tile[columns, D]ᵀ, the tile's rows counted from `row`.
template <typename T, int D, int ROW_FRAGMENTS, int COLUMN_FRAGMENTS, bool IN_REGISTERS>
__device__ __forceinline__ void multiply_rows(
    float (&scores)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4],
    const LeftMatrix<D, ROW_FRAGMENTS, IN_REGISTERS> &left, u32 tile, u32 row
) {
#pragma unroll
    for (int m = 0; m < ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < COLUMN_FRAGMENTS; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[m][n][i] = 0.f;
        }
    }
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        u32 a[ROW_FRAGMENTS][4];
        left.load(a, step);
#pragma unroll
        for (int n = 0; n < COLUMN_FRAGMENTS; n += 2) {
            u32 b[4];
            load_right<D>(b, tile, row + 8 * n, step);
#pragma unroll
            for (int m = 0; m < ROW_FRAGMENTS; m++) {
                multiply_add<T>(scores[m][n], a[m], b[0], b[1]);
                multiply_add<T>(scores[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// An accumulator as left fragments of the next product: columns become the summed dimension.
template <typename T, int ROW_FRAGMENTS, int COLUMN_FRAGMENTS> struct Narrowed {
    u32 held[COLUMN_FRAGMENTS / 2][ROW_FRAGMENTS][4];

    /// Two neighbours in half `half` (row, or row + 8) of fragment `[m][n]`.
    __device__ __forceinline__ void set(int m, int n, int half, float low, float high) {
        held[n / 2][m][n % 2 * 2 + half] = pack<T>(low, high);
    }
};

/// sums[rows, columns] += left[rows, summed] · tile[summed, columns], the tile's rows counted from `row` and its
/// columns from `8 piece`.
template <typename T, int D, int ROW_FRAGMENTS, int SUMMED_FRAGMENTS, int COLUMN_FRAGMENTS>
__device__ __forceinline__ void multiply_turned(
    float (&sums)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4],
    const Narrowed<T, ROW_FRAGMENTS, SUMMED_FRAGMENTS> &left, u32 tile, u32 row, u32 piece
) {
#pragma unroll
    for (int step = 0; step < SUMMED_FRAGMENTS / 2; step++) {
#pragma unroll
        for (int n = 0; n < COLUMN_FRAGMENTS; n += 2) {
            u32 b[4];
            load_right_turned<D>(b, tile, row + 16 * step, piece + n);
#pragma unroll
            for (int m = 0; m < ROW_FRAGMENTS; m++) {
                multiply_add<T>(sums[m][n], left.held[step][m], b[0], b[1]);
                multiply_add<T>(sums[m][n + 1], left.held[step][m], b[2], b[3]);
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&sums)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] = 0.f;
        }
    }
}

/// Writes an accumulator to the warp's own rows of a tile, then copies whole rows to global memory in pieces of 16
/// bytes. `row_pointer(row)` is null for rows that do not exist.
template <typename T, int D, int M, int N, typename RowPointer>
__device__ __forceinline__ void store_rows(
    const float (&sums)[M][N][4], unsigned char *tile, u32 row, u32 head_dim, RowPointer row_pointer
) {
    static_assert(N * 8 == D, "whole rows");
    const u32 lane = threadIdx.x % WARP;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 at = Tile<D>::offset(row + 16 * m + 8 * half + lane / 4, n) + lane % 4 * 4;
                *reinterpret_cast<u32 *>(tile + at) = pack<T>(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
            }
        }
    }
    __syncwarp();
    for (u32 index = lane; index < 16 * M * Tile<D>::PIECES; index += WARP) {
        const u32 own = index / Tile<D>::PIECES, piece = index % Tile<D>::PIECES;
        T *target = row_pointer(row + own);
        if (target == nullptr || piece * 8 >= head_dim) continue;
        const uint4 value = *reinterpret_cast<const uint4 *>(tile + Tile<D>::offset(row + own, piece));
        *reinterpret_cast<uint4 *>(target + piece * 8) = value;
    }
}

} // namespace attention
