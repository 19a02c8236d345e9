#include "textflag.h"
#include "rows_amd64.h"

// func l2RowsAVX2(q, base *float32, rows *uint32, n, dim int, out *float32)
//
// out[i] = ‖q − base[rows[i]·dim : ]‖² for i in 0..n−1; dim is a positive
// multiple of 32, n is positive. While a row is summed the next one is
// prefetched: rows of a graph lie anywhere in memory.
TEXT ·l2RowsAVX2(SB), NOSPLIT, $0-48
	MOVQ q+0(FP), DI
	MOVQ base+8(FP), SI
	MOVQ rows+16(FP), R8
	MOVQ n+24(FP), R9
	MOVQ dim+32(FP), R13
	MOVQ out+40(FP), R10
	SHLQ $2, R13         // bytes of a row
	MOVL (R8), R11
	IMULQ R13, R11
	ADDQ SI, R11         // this row

row:
	MOVQ R11, R12        // the next row; after the last one, the same again
	DECQ R9
	JZ   sum
	MOVL 4(R8), R12
	IMULQ R13, R12
	ADDQ SI, R12

sum:
	VXORPS Y0, Y0, Y0
	VXORPS Y1, Y1, Y1
	VXORPS Y2, Y2, Y2
	VXORPS Y3, Y3, Y3
	XORQ   CX, CX

step:
	PREFETCHT0 (R12)(CX*1)
	PREFETCHT0 64(R12)(CX*1)
	VMOVUPS (DI)(CX*1), Y4
	VMOVUPS 32(DI)(CX*1), Y5
	VMOVUPS 64(DI)(CX*1), Y6
	VMOVUPS 96(DI)(CX*1), Y7
	VSUBPS  (R11)(CX*1), Y4, Y4
	VSUBPS  32(R11)(CX*1), Y5, Y5
	VSUBPS  64(R11)(CX*1), Y6, Y6
	VSUBPS  96(R11)(CX*1), Y7, Y7
	VFMADD231PS Y4, Y4, Y0
	VFMADD231PS Y5, Y5, Y1
	VFMADD231PS Y6, Y6, Y2
	VFMADD231PS Y7, Y7, Y3
	ADDQ $128, CX
	CMPQ CX, R13
	JB   step

	VADDPS Y1, Y0, Y0
	VADDPS Y3, Y2, Y2
	VADDPS Y2, Y0, Y0
	VEXTRACTF128 $1, Y0, X1
	VADDPS X1, X0, X0
	VPERMILPD $1, X0, X1
	VADDPS X1, X0, X0
	VMOVSHDUP X0, X1
	VADDSS X1, X0, X0
	VMOVSS X0, (R10)

	ADDQ $4, R10
	ADDQ $4, R8
	MOVQ R12, R11
	TESTQ R9, R9
	JNZ  row
	VZEROUPPER
	RET

// func l2RowsAVX512(q, base *float32, rows *uint32, n, dim int, out *float32)
//
// It is l2RowsAVX2 by AVX-512.
TEXT ·l2RowsAVX512(SB), NOSPLIT, $0-48
	MOVQ q+0(FP), DI
	MOVQ base+8(FP), SI
	MOVQ rows+16(FP), R8
	MOVQ n+24(FP), R9
	MOVQ dim+32(FP), R13
	MOVQ out+40(FP), R10
	SHLQ $2, R13         // bytes of a row

	FOUR_ROWS

step:
	VMOVUPS     (DI)(CX*1), Z4
	VSUBPS      (R11)(CX*1), Z4, Z5
	VSUBPS      (R12)(CX*1), Z4, Z6
	VSUBPS      (AX)(CX*1), Z4, Z7
	VSUBPS      (BX)(CX*1), Z4, Z8
	VFMADD231PS Z5, Z5, Z0
	VFMADD231PS Z6, Z6, Z1
	VFMADD231PS Z7, Z7, Z2
	VFMADD231PS Z8, Z8, Z3
	VMOVUPS     64(DI)(CX*1), Z4
	VSUBPS      64(R11)(CX*1), Z4, Z5
	VSUBPS      64(R12)(CX*1), Z4, Z6
	VSUBPS      64(AX)(CX*1), Z4, Z7
	VSUBPS      64(BX)(CX*1), Z4, Z8
	VFMADD231PS Z5, Z5, Z0
	VFMADD231PS Z6, Z6, Z1
	VFMADD231PS Z7, Z7, Z2
	VFMADD231PS Z8, Z8, Z3
	ADDQ        $128, CX
	CMPQ        CX, R13
	JB          step

	VEXTRACTF64X4 $1, Z0, Y5
	VEXTRACTF64X4 $1, Z1, Y6
	VEXTRACTF64X4 $1, Z2, Y7
	VEXTRACTF64X4 $1, Z3, Y8
	VADDPS        Y5, Y0, Y0
	VADDPS        Y6, Y1, Y1
	VADDPS        Y7, Y2, Y2
	VADDPS        Y8, Y3, Y3
	VHADDPS       Y1, Y0, Y0 // pairs of rows 0 and 1 in each half
	VHADDPS       Y3, Y2, Y2
	VHADDPS       Y2, Y0, Y0 // rows 0 to 3 in each half
	VEXTRACTF128  $1, Y0, X1
	VADDPS        X1, X0, X0
	STORE_FOUR
