// What the AVX-512 kernels share: four rows at a time, so that four wait for memory
// together. R8 points to the numbers of the rows and R9 is how many are left; SI is the
// first row, R13 the bytes of one, R10 where the results go.

// FOUR_ROWS has R11, R12, AX and BX point to the next four rows, the last one again
// for what is left over, and Z0 to Z3, their sums, and CX be 0.
#define FOUR_ROWS \
four: \
	MOVL   (R8), R11; \
	MOVL   R11, R12; \
	MOVL   R11, AX; \
	MOVL   R11, BX; \
	CMPQ   R9, $2; \
	JB     rows; \
	MOVL   4(R8), R12; \
	MOVL   R12, AX; \
	MOVL   R12, BX; \
	JE     rows; \
	MOVL   8(R8), AX; \
	MOVL   AX, BX; \
	CMPQ   R9, $4; \
	JB     rows; \
	MOVL   12(R8), BX; \
rows: \
	IMULQ  R13, R11; \
	IMULQ  R13, R12; \
	IMULQ  R13, AX; \
	IMULQ  R13, BX; \
	ADDQ   SI, R11; \
	ADDQ   SI, R12; \
	ADDQ   SI, AX; \
	ADDQ   SI, BX; \
	VPXORQ Z0, Z0, Z0; \
	VPXORQ Z1, Z1, Z1; \
	VPXORQ Z2, Z2, Z2; \
	VPXORQ Z3, Z3, Z3; \
	XORQ   CX, CX

// STORE_FOUR stores X0, the results of the four, of the last ones those that there
// are, and goes on to the next four or returns.
#define STORE_FOUR \
	CMPQ    R9, $4; \
	JB      last; \
	VMOVUPS X0, (R10); \
	ADDQ    $16, R10; \
	ADDQ    $16, R8; \
	SUBQ    $4, R9; \
	JNZ     four; \
	VZEROUPPER; \
	RET; \
last: \
	VMOVSS  X0, (R10); \
	DECQ    R9; \
	JZ      done; \
	VPSRLDQ $4, X0, X0; \
	ADDQ    $4, R10; \
	JMP     last; \
done: \
	VZEROUPPER; \
	RET
