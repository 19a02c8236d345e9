#include "textflag.h"
#include "rows_amd64.h"

// func codeRowsAVX2(q, base *uint8, rows *uint32, n, width int, out *float32)
//
// out[i] = Σ (q − base[rows[i]·width : ])² for i in 0..n−1, of bytes below 128; width
// is a positive multiple of 32, n is positive. While a row is summed the next one is
// prefetched: rows of a graph lie anywhere in memory.
TEXT ·codeRowsAVX2(SB), NOSPLIT, $0-48
	MOVQ     q+0(FP), DI
	MOVQ     base+8(FP), SI
	MOVQ     rows+16(FP), R8
	MOVQ     n+24(FP), R9
	MOVQ     width+32(FP), R13
	MOVQ     out+40(FP), R10
	VPCMPEQW Y7, Y7, Y7
	VPABSW   Y7, Y7           // sixteen ones
	MOVL     (R8), R11
	IMULQ    R13, R11
	ADDQ     SI, R11          // this row

row:
	MOVQ  R11, R12            // the next row; after the last one, the same again
	DECQ  R9
	JZ    sum
	MOVL  4(R8), R12
	IMULQ R13, R12
	ADDQ  SI, R12

sum:
	VPXOR Y0, Y0, Y0
	XORQ  CX, CX

step:
	PREFETCHT0 (R12)(CX*1)
	VMOVDQU    (DI)(CX*1), Y1
	VPSUBB     (R11)(CX*1), Y1, Y1
	VPABSB     Y1, Y1
	VPMADDUBSW Y1, Y1, Y1     // at most 2·127²: no saturation
	VPMADDWD   Y7, Y1, Y1
	VPADDD     Y1, Y0, Y0
	ADDQ       $32, CX
	CMPQ       CX, R13
	JB         step

	VEXTRACTI128 $1, Y0, X1
	VPADDD       X1, X0, X0
	VPSHUFD      $0x4e, X0, X1
	VPADDD       X1, X0, X0
	VPSHUFD      $0xb1, X0, X1
	VPADDD       X1, X0, X0
	VCVTDQ2PS    X0, X0
	VMOVSS       X0, (R10)

	ADDQ  $4, R10
	ADDQ  $4, R8
	MOVQ  R12, R11
	TESTQ R9, R9
	JNZ   row
	VZEROUPPER
	RET

// func codeRowsVNNI(q, base *uint8, rows *uint32, n, width int, out *float32)
//
// It is codeRowsAVX2 by AVX-512 and its dot products of bytes (VPDPBUSD): the sums of
// four rows come out of one transposition.
TEXT ·codeRowsVNNI(SB), NOSPLIT, $0-48
	MOVQ q+0(FP), DI
	MOVQ base+8(FP), SI
	MOVQ rows+16(FP), R8
	MOVQ n+24(FP), R9
	MOVQ width+32(FP), R13
	MOVQ out+40(FP), R10
	MOVQ R13, R14
	ANDQ $-64, R14            // whole steps

	FOUR_ROWS
	TESTQ  R14, R14
	JZ     half

step:
	VMOVDQU64 (DI)(CX*1), Z4
	VPSUBB    (R11)(CX*1), Z4, Z5
	VPSUBB    (R12)(CX*1), Z4, Z6
	VPSUBB    (AX)(CX*1), Z4, Z7
	VPSUBB    (BX)(CX*1), Z4, Z8
	VPABSB    Z5, Z5
	VPABSB    Z6, Z6
	VPABSB    Z7, Z7
	VPABSB    Z8, Z8
	VPDPBUSD  Z5, Z5, Z0      // bytes of 0..127 are the same with and without a sign
	VPDPBUSD  Z6, Z6, Z1
	VPDPBUSD  Z7, Z7, Z2
	VPDPBUSD  Z8, Z8, Z3
	ADDQ      $64, CX
	CMPQ      CX, R14
	JB        step
	CMPQ      CX, R13
	JE        fold

half:                             // 32 bytes more: a load of half a register clears the rest
	VMOVDQU  (DI)(CX*1), Y4
	VPSUBB   (R11)(CX*1), Y4, Y5
	VPSUBB   (R12)(CX*1), Y4, Y6
	VPSUBB   (AX)(CX*1), Y4, Y7
	VPSUBB   (BX)(CX*1), Y4, Y8
	VPABSB   Y5, Y5
	VPABSB   Y6, Y6
	VPABSB   Y7, Y7
	VPABSB   Y8, Y8
	VPDPBUSD Z5, Z5, Z0
	VPDPBUSD Z6, Z6, Z1
	VPDPBUSD Z7, Z7, Z2
	VPDPBUSD Z8, Z8, Z3

fold:
	VEXTRACTI64X4 $1, Z0, Y5
	VEXTRACTI64X4 $1, Z1, Y6
	VEXTRACTI64X4 $1, Z2, Y7
	VEXTRACTI64X4 $1, Z3, Y8
	VPADDD        Y5, Y0, Y0
	VPADDD        Y6, Y1, Y1
	VPADDD        Y7, Y2, Y2
	VPADDD        Y8, Y3, Y3
	VPHADDD       Y1, Y0, Y0  // pairs of rows 0 and 1 in each half
	VPHADDD       Y3, Y2, Y2
	VPHADDD       Y2, Y0, Y0  // rows 0 to 3 in each half
	VEXTRACTI128  $1, Y0, X1
	VPADDD        X1, X0, X0
	VCVTDQ2PS     X0, X0
	STORE_FOUR
