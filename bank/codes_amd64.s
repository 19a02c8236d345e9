#include "textflag.h"

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
